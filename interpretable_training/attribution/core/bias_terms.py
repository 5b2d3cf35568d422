"""Split a score into contributions of the image and of the biases of the network.

    y = <dy/dx, x> + sum over i of <dy/dz[i], b[i]>    (1)

x: image. z[i]: output of the affine operation i (convolution, linear layer, batch norm in eval mode), b[i]: its bias;
that of batch norm is beta - gamma mu / sqrt(var + eps). (1) is exact if all other operations are homogeneous, as ReLU
and pooling are. Any other activation psi has an implicit bias d: psi(z) = psi'(z) z + d(z), which adds <dy/dpsi, d>.

Functional calls are intercepted during the forward pass, which includes reused and functional layers.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .activation_gates import CLAMPS, SMOOTH
from .base import full
from .capture import gradients
from .feature_grids import find_grid
from .input_gradients import refuse_no_grad_inside
from .prepared_model import PreparedModel
from .sharded_parameters import whole
from .targets import Resolved

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
CURVED = {*SMOOTH, F.relu6, F.hardtanh, F.hardtanh_, F.hardsigmoid, F.sigmoid, F.tanh, F.logsigmoid, F.softsign}
CURVED |= {F.softshrink, F.tanhshrink, F.threshold, torch.threshold_, torch.celu, torch.celu_, torch.selu, torch.selu_}
CURVED |= {torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.clamp_max, torch.clamp_max_, *CLAMPS}
CURVED |= {Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_, Tensor.clamp_max, Tensor.clamp_max_}
COMPLETE = 0.01  # share of the score that may be missing without a warning
ROUNDING = 1e-4  # share of the parts that counts as rounding error where they cancel


@dataclass
class Split:
    """Parts of the score y (B,): T (B, C, ...) of the image, sums of biases with a place in the image and without."""

    y: Tensor
    T: Tensor
    placed: Tensor
    rest: Tensor

    def missing(self) -> Tensor:
        """Return the sum of the parts minus the score, (B,)."""
        return self.T.flatten(1).sum(1) + self.placed + self.rest - self.y


def split(
    prepared: PreparedModel,
    images: Tensor,
    target: Resolved,
    visit: Callable[[Tensor, Tensor], None],
    implicit: bool = False,
) -> Split:
    """Return the parts of (1), and call `visit` for each operation with a place in the image.

    Args:
        visit: is called with dy/dz * b (B, K, *spatial), which it may overwrite to save memory, and its sums (B,).
        implicit: also count the implicit biases of activations.
    """
    if isinstance(target, Tensor) and target.ndim != 1:
        raise ValueError(f"expected one class per image to split its score, got target {tuple(target.shape)}.")
    B = len(images)
    sums = [images.new_zeros(B, dtype=full(images).dtype) for _ in range(2)]

    def contribute(T: Tensor, placed: bool) -> None:
        total = T.reshape(B, -1).sum(1)
        sums[placed] += total
        if placed:
            visit(T, total)

    with torch.enable_grad(), _Biases(images, implicit, contribute) as mode:
        x = images.detach().requires_grad_()
        y = prepared.score(x, target)
    if not y.requires_grad:
        refuse_no_grad_inside(prepared, images)
    dx = gradients(y, {"x": x})["x"]
    parts = Split(full(y.detach()), full(dx) * full(images), placed=sums[1], rest=sums[0])
    if y.dtype in (torch.float32, torch.float64) and not prepared.autocast:
        _warn(parts, mode)
    return parts


def _warn(parts: Split, mode: "_Biases") -> None:
    missing = parts.missing().abs()
    scale = torch.stack([parts.T.flatten(1).sum(1), parts.placed, parts.rest]).abs().amax(0)
    share = missing / parts.y.abs().clamp(min=torch.finfo(missing.dtype).tiny)
    large = share[(share > COMPLETE) & (missing > ROUNDING * scale)]  # False for NaN
    if len(large):
        hint = "; implicit=True adds the implicit biases of activations such as GELU and SiLU" * mode.hides
        warnings.warn(
            f"image and biases do not add up to the score, {100 * float(large.max()):.3g} % of it are missing: the "
            "network is not piecewise linear (attention, layer norm, batch norm of the batch, gates) or adds constants "
            f"that are no biases of layers (it normalizes images itself){hint}.",
            stacklevel=2,
        )


class _Biases(TorchFunctionMode):
    def __init__(self, images: Tensor, implicit: bool, contribute: Callable[[Tensor, bool], None]) -> None:
        super().__init__()
        self.batch, self.size, self.implicit, self.contribute = len(images), images.shape[2:], implicit, contribute
        self.hides = False  # whether activations have implicit biases that are not counted

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        curved = func in CURVED
        self.hides |= curved and not self.implicit
        b = _implicit(func, args, kwargs) if self.implicit and curved else None  # before func, which may be in-place
        out = func(*args, **kwargs)
        b = _bias(func, args, kwargs) if b is None else b
        if b is not None and out.requires_grad:
            self._watch(out, b, curved, func is F.linear)
        return out

    def _watch(self, out: Tensor, b: Tensor, curved: bool, linear: bool) -> None:
        B, axes = self.batch, len(self.size) + 2
        b = whole(full(b.detach()))
        if linear and out.ndim == 3 and len(out) != B == out.shape[1]:  # tokens (T, B, D)
            out.register_hook(lambda g: self.contribute((whole(full(g)) * b).transpose(0, 1), False))
        elif len(out) % B == 0:  # more rows than images: patches or windows of each
            # Output of a single cell, such as that of a convolution behind global pooling, has no place in the image.
            placed = not linear and len(out) == B and out.ndim == axes and out[0, 0].numel() > 1
            grid = find_grid(out.shape, self.size) if placed and curved else None  # as in ConvNeXt, channels last
            last = grid is not None and grid.layout == "last"
            out.register_hook(lambda g: self.contribute(_first(whole(full(g)) * b, last), placed))


def _first(T: Tensor, last: bool) -> Tensor:
    """Return (B, K, *spatial) of a tensor whose channels may be last."""
    return T.movedim(-1, 1) if last else T


def _bias(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the bias of an affine call, in a shape that adds to the output; None for other calls."""
    if func is F.linear:
        return _copied(_argument(args, kwargs, 2, "bias"))
    if func in CONVOLUTIONS:
        bias = _copied(_argument(args, kwargs, 2, "bias"))
        return None if bias is None else _along_channels(bias, _argument(args, kwargs, 1, "weight").ndim - 2)
    if func is F.batch_norm:
        return _batch_norm_bias(*args, **kwargs)
    return None


def _copied(bias: Tensor | None) -> Tensor | None:
    """Return a copy of a bias: FSDP2 frees parameters between the forward and the backward pass."""
    return None if bias is None else bias.detach().clone()


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
        # The mean of the batch, which is subtracted, is no constant.
        return None if bias is None else _along_channels(bias.detach().clone(), input.ndim - 2)
    shift = running_mean / (running_var + eps).sqrt()
    shift = shift if weight is None else weight * shift
    return _along_channels(-shift if bias is None else bias - shift, input.ndim - 2)


def _implicit(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return d(z) = psi(z) - psi'(z) z of an activation."""
    z = args[0] if args else kwargs["input"]
    if not (torch.is_grad_enabled() and z.requires_grad):
        return None
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    leaf = z.detach().clone().requires_grad_()
    # The hooks replace those of activation checkpointing.
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        value = func(leaf * 1, *args[1:], **rest)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach() - slope * leaf.detach()
