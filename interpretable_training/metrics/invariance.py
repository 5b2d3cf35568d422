"""Whether maps change with a shift of the images that the network does not feel. Kindermans et al., 2017,
https://arxiv.org/abs/1711.00867

    f2(z) = f(z - m)                                                                      (1)
    W (z - m) + b = W z + (b - W m), where m instead of zero surrounds the images         (2)
    d     = max over pixels of |S[f](x) - S[f2](x + m)| / max over pixels of |S[f](x)|    (3)

m: one constant per channel. (1) is wrapped around the network, or done by the bias of its first convolution as in (2):
methods that read biases tell them apart, all others do not; what m adds around the images belongs to no bias. Both
networks are the same function of what is seen, and so should their maps be: a method passes where d is nothing but
rounding. The images are rounded so that both networks compute with equal numbers, in double precision, since a unit at
the kink of a ReLU that rounding turns on changes a map visibly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.base import explain, name_methods
from interpretable_training.attribution.maps import one_of
from interpretable_training.attribution.observe import Observed, Output, observe, prepare, same_generators, unwrap
from interpretable_training.attribution.targets import Target, pick_logits

from .randomization import Methods, own_tensors_back
from .sanity import SIMILARITIES, Check, Similarity, mean, similarities


@dataclass(frozen=True)
class InputInvariance:
    """Compares each method's maps of a network with those of the network that undoes a shift (1), (3).

    Args:
        shift: m, one number or one per channel, in units of the normalized image.
        tolerance: up to which d counts as rounding.
        undo: the shift at the "input" of the network (1) or in the "bias" of the convolutions that see the images (2).
        share: of the images on which a method has to be invariant.
        double: compute in double precision, with a copy of the weights; False takes the model's own.
        similarity: which similarities are told beside d.
    """

    shift: float | Sequence[float] = -1.0
    tolerance: float = 1e-4
    undo: Literal["input", "bias"] = "input"
    share: float = 1.0
    double: bool = True
    similarity: Sequence[Similarity] = SIMILARITIES

    name = "input invariance"

    def __post_init__(self) -> None:
        one_of("undo", self.undo, "input", "bias")

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
                undone = undone_at_input(module, m)
                if self.undo == "bias":
                    undone = undone_by_bias(first_convolutions(observed, images, m), m)
            before = explain(named, model, images, resolved, output=output)
            with undone:
                after = explain(named, model, shifted, resolved, output=output)
        return [self._check(name, before[name], after[name]) for name in named]

    def _shift(self, images: Tensor) -> Tensor:
        m = torch.as_tensor(self.shift, dtype=images.dtype, device=images.device).flatten()
        if len(m) not in (1, images.shape[1]):
            raise ValueError(f"expected one shift, or one for each of {images.shape[1]} channels, got {len(m)}.")
        return m.view(1, -1, *[1] * (images.ndim - 2))

    def _check(self, name: str, a: Tensor, b: Tensor) -> Check:
        largest = a.abs().flatten(1).amax(1)
        d = (a - b).abs().flatten(1).amax(1) / largest.masked_fill(largest == 0, 1)  # (3)
        relative = (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1).clamp(min=torch.finfo(a.dtype).tiny)
        invariant = float((d <= self.tolerance).float().mean())
        found = {kind: mean(value) for kind, value in similarities(a, b, self.similarity).items()}
        numbers: dict[str, float] = {"invariant": invariant, "difference": mean(relative), **found}
        rule = (
            f"passes if on {self.share:.0%} of the images no pixel of the map differs by more than {self.tolerance:g} "
            "of the highest"
        )
        return Check(self.name, name, numbers, invariant >= self.share, rule, "difference")


@contextmanager
def undone_at_input(module: nn.Module, m: Tensor) -> Iterator[None]:
    """Inside, `module` is f2 (1)."""
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] - m, *args[1:]), prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def undone_by_bias(first: list[Any], m: Tensor) -> Iterator[None]:
    """Inside, the convolutions that see the images undo the shift by their biases (2)."""
    for conv in first:
        conv.forward = partial(_shifted, conv, m)
    try:
        yield
    finally:
        for conv in first:
            del conv.forward


def first_convolutions(observed: Observed, images: Tensor, m: Tensor) -> list[Any]:
    """The convolutions that see the images themselves; an error where something else does, too."""
    first: list[Any] = []
    hooks = [
        child.register_forward_pre_hook(lambda conv, args: first.append(conv) if args[0] is images else None)
        for child in observed.module.modules()
        if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    with torch.no_grad():
        try:
            before = pick_logits(observed.module(images), observed.output)
        finally:
            for hook in hooks:
                hook.remove()
        with undone_by_bias(first, m):
            after = observed(images + m)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ValueError(
            "expected a network whose images go into convolutions and nowhere else, got one that computes something "
            f"else when these ({len(first)}) undo the shift; take undo='input'."
        )
    return first


def _shifted(conv: Any, m: Tensor, z: Tensor) -> Tensor:
    """(2) of one convolution."""
    call = (F.conv1d, F.conv2d, F.conv3d)[z.ndim - 3]
    pads = conv._reversed_padding_repeated_twice
    if conv.padding_mode == "zeros":
        z = F.pad(z, pads) + m * (1 - F.pad(torch.ones_like(z[:1, :1]), pads))
    else:
        z = F.pad(z, pads, conv.padding_mode)
    extent = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size)]
    Wm = call(m.expand(1, z.shape[1], *extent), conv.weight, None, 1, 0, conv.dilation, conv.groups).flatten()
    bias = -Wm if conv.bias is None else conv.bias - Wm
    return call(z, conv.weight, bias, conv.stride, 0, conv.dilation, conv.groups)


def to_double(module: nn.Module) -> None:
    """Copies in double precision in the places of its tensors; to be called inside `own_tensors_back`."""
    for child in module.modules():
        for holder in (child._parameters, child._buffers):
            for key, tensor in holder.items():
                if tensor is not None and tensor.is_floating_point():
                    copy = tensor.detach().double()
                    keep = isinstance(tensor, nn.Parameter)
                    holder[key] = nn.Parameter(copy, requires_grad=False) if keep else copy  # type: ignore[assignment]
