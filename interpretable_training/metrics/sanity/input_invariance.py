"""Invariance of maps to a shift of the images that the network undoes. Kindermans et al., 2017,
https://arxiv.org/abs/1711.00867

    f2(z) = f(z - m)                                                                      (1)
    W (z - m) + b = W z + (b - W m), where m instead of zero surrounds the images         (2)
    d     = max over pixels of |S[f](x) - S[f2](x + m)| / max over pixels of |S[f](x)|    (3)

m: one constant per channel. (1) is wrapped around the network, or done by the bias of its first convolution as in (2):
only methods that read biases return different maps for the two; what m adds around the images belongs to no bias. Both
networks are the same function of what is seen, and so should their maps be: a method passes where d is nothing but
rounding. The images are rounded so that both networks compute with equal numbers, in double precision, since a unit at
the kink of a ReLU that rounding turns on changes a map visibly.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core._compat import buffers_in, parameters_in
from interpretable_training.attribution.core.base import Methods, explain, name_methods
from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.options import check_fields
from interpretable_training.attribution.core.precision import wide
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.sharded_parameters import refuse_sharded
from interpretable_training.attribution.core.targets import Resolved, Target, pick_logits

from .checks import SIMILARITIES, Check, Similarity, mean, similarities
from .parameter_randomization import own_tensors_back


@dataclass(frozen=True)
class InputInvariance:
    """Compares each method's maps of a network with those of the network that undoes a shift (1), (3).

    >>> from interpretable_training.attribution import Gradient
    >>> [check.passed for check in InputInvariance()(network, Gradient(), images)]
    [True]

    Args:
        shift: m, one number or one per channel, in units of the normalized image.
        tolerance: up to which d counts as rounding.
        undo: the shift at the "input" of the network (1) or in the "bias" of the convolutions that see the images (2).
        share: of the images on which a method has to be invariant.
        double: compute in double precision, with a copy of the weights; False takes the model's own.
        similarity: which similarities are returned in addition to d.
    """

    shift: float | Sequence[float] = -1.0
    tolerance: float = 1e-4
    undo: Literal["input", "bias"] = "input"
    share: float = 1.0
    double: bool = True
    similarity: Sequence[Similarity] = SIMILARITIES

    name = "input invariance"

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, model: nn.Module, methods: Methods, images: Tensor, target: Target = None, *, output: Output = None
    ) -> list[Check]:
        """Return one `Check` per method; the model stays as it is.

        Args:
            model: a classifier, called with the images alone.
            methods: name -> method, or a list.
            images: (B, C, H, W), a few suffice.
            target: the classes that are explained; by default those that the network predicts.
            output: which part of the model's output are the logits.
        """
        named, module = name_methods(methods), unwrap(model)
        refuse_sharded(module, type(self).__name__)
        with torch.inference_mode(False), same_generators(), own_tensors_back(module):
            if self.double and isinstance(images, Tensor) and wide(images) != torch.float64:
                raise ValueError(
                    f"expected images on a device that computes in double precision, got {images.device}, which does "
                    "not; pass double=False, or move the model and the images to the CPU."
                )
            if self.double:
                to_double(module)
            with prepare_model(model, output) as prepared:
                images = prepare(prepared, images)
                images = images.double() if self.double else images
                m = self._shift(images)
                shifted = images + m
                images = shifted - m  # the very numbers that f2 makes of its images
                resolved = prepared.resolve(images, target)
                undone = undone_at_input(module, m)
                if self.undo == "bias":
                    undone = undone_by_bias(first_convolutions(prepared, images, resolved, m), m)
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
        d = _relative(a, b, torch.inf)  # (3)
        undefined = int(d.isnan().sum())
        invariant = mean((d <= self.tolerance).to(wide(d)).masked_fill(d.isnan(), torch.nan))
        similarity = {kind: mean(value) for kind, value in similarities(a, b, self.similarity).items()}
        numbers: dict[str, float] = {"invariant": invariant, "difference": mean(_relative(a, b, 2)), **similarity}
        undone = {"input": "", "bias": ", with the shift undone in a bias,"}[self.undo]
        rule = (
            f"passes if{undone} on {self.share:.0%} of the images no pixel of the map differs by more than "
            f"{self.tolerance:g} of the highest"
        )
        passed = None if undefined == len(d) else invariant >= self.share
        return Check(self.name, name, numbers, passed, rule, "difference", n_undefined=undefined)


def _relative(a: Tensor, b: Tensor, order: float) -> Tensor:
    """Return |a - b| / |a| of maps (B, ...), (B,); 1 where a alone is zero, 0 where both are."""
    of_a, of_b, difference = (v.flatten(1).norm(order, dim=1) for v in (a, b, a - b))
    scale = torch.where(of_a == 0, of_b, of_a)
    return difference / scale.masked_fill(scale == 0, 1)


@contextmanager
def undone_at_input(module: nn.Module, m: Tensor) -> Iterator[None]:
    """Make `module` compute f2 (1) inside the block."""
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] - m, *args[1:]), prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def undone_by_bias(first: Sequence[Any], m: Tensor) -> Iterator[None]:
    """Let the convolutions that see the images undo the shift by their biases (2) inside the block."""
    with ExitStack() as stack:
        for conv in first:
            stack.enter_context(own_tensors_back(conv))
            b, Wm = parameters_in(conv)["bias"], _response(conv, m)
            parameters_in(conv)["bias"] = nn.Parameter(-Wm if b is None else b.detach() - Wm, requires_grad=False)
            stack.callback(conv.register_forward_hook(partial(_exactly, m, b)).remove)
        yield


def _response(conv: Any, m: Tensor) -> Tensor:
    """Return W m (K,) where nothing but m lies under W; of whatever forward the convolution has."""
    size = [3 * d * k + 4 * s for d, k, s in zip(conv.dilation, conv.kernel_size, conv.stride)]
    with torch.no_grad():
        shift = m.expand(1, conv.in_channels, *size).contiguous()
        response = conv.forward(shift) - conv.forward(torch.zeros_like(shift))
    middle = (0, slice(None), *(n // 2 for n in response.shape[2:]))  # far from what surrounds the image
    return response[middle]


def _exactly(m: Tensor, b: nn.Parameter | None, conv: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Return `out` as if m instead of zero surrounded the images, in the very numbers of the first network."""
    ours = parameters_in(conv)["bias"]
    parameters_in(conv)["bias"] = b
    try:
        with torch.no_grad():
            same = conv.forward(args[0] - m)
    finally:
        parameters_in(conv)["bias"] = ours
    return same + (out - out.detach())  # 0, with the gradient


def first_convolutions(prepared: PreparedModel, images: Tensor, target: Resolved, m: Tensor) -> list[Any]:
    """Return the convolutions that see the images themselves; raise where something else does, too."""
    images = images.nan_to_num()
    first: dict[Any, None] = {}  # one may see them twice

    def run(x: Tensor) -> Tensor:
        output = prepared.run(x)
        return prepared.score_in(output, target) if callable(target) else pick_logits(output, prepared.output)

    def look(conv: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].shape == images.shape and torch.equal(args[0], images):
            first[conv] = None

    hooks = [
        child.register_forward_pre_hook(look)
        for child in prepared.module.modules()
        if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    with torch.no_grad():
        try:
            y = run(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not first:
            raise ValueError(
                "expected a network whose images go into a convolution, got one in which none sees them as they are; "
                "normalize them outside of the network, or take undo='input'."
            )
        with undone_by_bias(list(first), m):
            missed = run(images + m) - y
    if not (missed.abs() <= max(1e-5, torch.finfo(y.dtype).eps ** 0.5) * y.abs().max()).all():
        raise ValueError(
            "expected a network whose images go into convolutions and nowhere else, got one that computes something "
            f"else when these ({len(first)}) undo the shift; take undo='input'."
        )
    return list(first)


def to_double(module: nn.Module) -> None:
    """Put copies in double precision in the places of its tensors; call it inside `own_tensors_back`."""
    for child in module.modules():
        for holder in (parameters_in(child), buffers_in(child)):
            for key, tensor in holder.items():
                if tensor is not None and tensor.is_floating_point():
                    copy = tensor.detach().double()
                    keep = isinstance(tensor, nn.Parameter)
                    holder[key] = nn.Parameter(copy, requires_grad=False) if keep else copy
