"""Whether maps change with a shift of the images that the network does not feel. Kindermans et al., 2017,
https://arxiv.org/abs/1711.00867

    f2(z) = f(z - m)                                      (1)
    d     = max over pixels of |S[f](x) - S[f2](x + m)| / max over pixels of |S[f](x)|    (2)

m: one constant per channel. Both networks are the same function of what is seen, and so should their maps be: a method
passes where d is nothing but rounding. The images are rounded so that both networks compute with equal numbers, in
double precision, since a unit at the kink of a ReLU that rounding turns on changes a map visibly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interpretable_training.attribution.base import explain, name_methods
from interpretable_training.attribution.observe import Output, observe, prepare, same_generators, unwrap
from interpretable_training.attribution.targets import Target

from .randomization import Methods, own_tensors_back
from .sanity import SIMILARITIES, Check, Similarity, mean, similarities


@dataclass(frozen=True)
class InputInvariance:
    """Compares each method's maps of a network with those of the network that undoes a shift (1), (2).

    Args:
        shift: m, one number or one per channel, in units of the normalized image.
        tolerance: up to which d counts as rounding.
        share: of the images on which a method has to be invariant.
        double: compute in double precision, with a copy of the weights; False takes the model's own.
        similarity: which similarities are told beside d.
    """

    shift: float | Sequence[float] = -1.0
    tolerance: float = 1e-4
    share: float = 1.0
    double: bool = True
    similarity: Sequence[Similarity] = SIMILARITIES

    name = "input invariance"

    def __call__(
        self, model: nn.Module, methods: Methods, images: Tensor, target: Target = None, *, output: Output = None
    ) -> list[Check]:
        """One `Check` per method; the model stays as it is.

        Args:
            model: a classifier, called with the images alone.
            methods: name -> method, or a list.
            images: (B, C, H, W), a few suffice.
            target: the classes that are explained; by default those that the network predicts.
            output: which part of the model's output are the logits.
        """
        named, module = name_methods(methods), unwrap(model)
        with torch.inference_mode(False), same_generators(), own_tensors_back(module):
            if self.double:
                images = images.double()
                to_double(module)
            with observe(model, output) as observed:
                images = prepare(observed, images)
                m = self._shift(images)
                shifted = images + m
                images = shifted - m  # the very numbers that f2 makes of its images
                resolved = observed.resolve(images, target)
            before = explain(named, model, images, resolved, output=output)
            handle = module.register_forward_pre_hook(lambda _, args: (args[0] - m, *args[1:]), prepend=True)  # (1)
            try:
                after = explain(named, model, shifted, resolved, output=output)
            finally:
                handle.remove()
        return [self._check(name, before[name], after[name]) for name in named]

    def _shift(self, images: Tensor) -> Tensor:
        m = torch.as_tensor(self.shift, dtype=images.dtype, device=images.device).flatten()
        if len(m) not in (1, images.shape[1]):
            raise ValueError(f"expected one shift, or one for each of {images.shape[1]} channels, got {len(m)}.")
        return m.view(1, -1, *[1] * (images.ndim - 2))

    def _check(self, name: str, a: Tensor, b: Tensor) -> Check:
        largest = a.abs().flatten(1).amax(1)
        d = (a - b).abs().flatten(1).amax(1) / largest.masked_fill(largest == 0, 1)  # (2)
        relative = (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1).clamp(min=torch.finfo(a.dtype).tiny)
        invariant = float((d <= self.tolerance).float().mean())
        found = {kind: mean(value) for kind, value in similarities(a, b, self.similarity).items()}
        numbers: dict[str, float] = {"invariant": invariant, "difference": mean(relative), **found}
        rule = (
            f"passes if on {self.share:.0%} of the images no pixel of the map differs by more than {self.tolerance:g} "
            "of the highest"
        )
        return Check(self.name, name, numbers, invariant >= self.share, rule, "difference")


def to_double(module: nn.Module) -> None:
    """Copies in double precision in the places of its tensors; to be called inside `own_tensors_back`."""
    for child in module.modules():
        for holder in (child._parameters, child._buffers):
            for key, tensor in holder.items():
                if tensor is not None and tensor.is_floating_point():
                    copy = tensor.detach().double()
                    keep = isinstance(tensor, nn.Parameter)
                    holder[key] = nn.Parameter(copy, requires_grad=False) if keep else copy  # type: ignore[assignment]
