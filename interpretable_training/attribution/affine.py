"""Split a score into what the image and the biases of the network contribute.

    y = <dy/dx, x> + sum over i of <dy/dz[i], b[i]>    (1)

x: image. z[i]: output of the affine operation i (convolution, linear layer, batch norm in eval mode), b[i]: its bias;
that of batch norm is beta - gamma mu / sqrt(var + eps). (1) is exact where all else is homogeneous, as ReLU and pooling
are. An activation psi that is not has an implicit bias: psi(z) = psi'(z) z + d(z), to be added as <dy/dpsi, d>.

The functional calls are intercepted while our forward pass runs, so that reused and functional layers are found.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .base import full
from .capture import gradients
from .gradient import refuse_hidden
from .observe import Observed
from .rules import SMOOTH
from .targets import Resolved

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
CURVED = {*SMOOTH, F.relu6, F.hardtanh, F.hardtanh_, F.hardsigmoid, F.sigmoid, F.tanh, F.logsigmoid, F.softsign}
CURVED |= {torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.clamp, torch.clamp_}
CURVED |= {Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_, Tensor.clamp, Tensor.clamp_}
COMPLETE = 0.01  # share of the score that may be missing without a warning


@dataclass
class Split:
    """The parts of the score y (B,): of the image T (B, C, ...), the sums of the biases with a place and without."""

    y: Tensor
    T: Tensor
    placed: Tensor
    rest: Tensor

    def missing(self) -> Tensor:
        """What the parts have more than the score, (B,)."""
        return self.T.flatten(1).sum(1) + self.placed + self.rest - self.y


def split(
    observed: Observed,
    images: Tensor,
    target: Resolved,
    visit: Callable[[Tensor, Tensor], None],
    implicit: bool = False,
) -> Split:
    """The parts of (1); `visit` gets <dy/dz, b> of each operation with a place in the image, and its sums (B,).

    The former is (B, K, *spatial) and `visit`'s own, to be overwritten if it likes: of large images it is large.

    Args:
        implicit: count the implicit biases of activations, too.
    """
    B = len(images)
    sums = [images.new_zeros(B, dtype=full(images).dtype) for _ in range(2)]

    def contribute(T: Tensor, placed: bool) -> None:
        total = T.flatten(1).sum(1)
        sums[placed] += total
        if placed:
            visit(T, total)

    with torch.enable_grad(), _Biases(images, implicit, contribute) as mode:
        x = images.detach().requires_grad_()
        y = observed.score(x, target)
    if not y.requires_grad:
        refuse_hidden(observed, images)
    dx = gradients(y, {"x": x})["x"]
    parts = Split(full(y.detach()), full(dx) * full(images), placed=sums[1], rest=sums[0])
    if y.dtype in (torch.float32, torch.float64) and not observed.autocast:
        _warn(parts, mode.implicit)
    return parts


def _warn(parts: Split, implicit: bool) -> None:
    scale = torch.stack([parts.y.abs(), parts.placed.abs(), parts.rest.abs()]).amax(0)
    share = float((parts.missing().abs() / scale.clamp(min=torch.finfo(scale.dtype).tiny)).max())
    if share > COMPLETE:
        more = "" if implicit else "; implicit=True adds the implicit biases of activations such as GELU and SiLU"
        warnings.warn(
            f"image and biases do not add up to the score, {100 * share:.0f} % of it are missing: the network is not "
            f"piecewise linear (attention, layer norm, gates){more}.",
            stacklevel=2,
        )


class _Biases(TorchFunctionMode):
    def __init__(self, images: Tensor, implicit: bool, contribute: Callable[[Tensor, bool], None]) -> None:
        super().__init__()
        self.batch, self.axes, self.implicit, self.contribute = len(images), images.ndim, implicit, contribute

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        b = _implicit(func, args, kwargs) if self.implicit and func in CURVED else None  # before it works in place
        out = func(*args, **kwargs)
        b = _bias(func, args, kwargs) if b is None else b
        if b is not None and out.requires_grad and len(out) == self.batch:
            # The layer of a single cell, such as a convolution behind global pooling, has no place in the image.
            grid = func is not F.linear and out.ndim == self.axes and out[0, 0].numel() > 1
            out.register_hook(lambda g: self.contribute(full(g) * full(b), grid))
        return out


def _bias(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The bias of an affine call, as it is added to the output."""
    if func is F.linear:
        return _argument(args, kwargs, 2, "bias")
    if func in CONVOLUTIONS:
        bias = _argument(args, kwargs, 2, "bias")
        return None if bias is None else _along_channels(bias, _argument(args, kwargs, 1, "weight").ndim - 2)
    if func is F.batch_norm:
        return _batch_norm_bias(*args, **kwargs)
    return None


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


def _along_channels(bias: Tensor, axes: int) -> Tensor:
    return bias.reshape(-1, *[1] * axes)


def _batch_norm_bias(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None if bias is None else _along_channels(bias, input.ndim - 2)  # what it subtracts is no constant
    shift = running_mean / (running_var + eps).sqrt()
    shift = shift if weight is None else weight * shift
    return _along_channels(-shift if bias is None else bias - shift, input.ndim - 2)


def _implicit(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """d(z) = psi(z) - psi'(z) z of an activation."""
    z = args[0] if args else kwargs["input"]
    if not (torch.is_grad_enabled() and z.requires_grad):
        return None
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    leaf = z.detach().clone().requires_grad_()
    value = func(leaf * 1, *args[1:], **rest)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach() - slope * leaf.detach()
