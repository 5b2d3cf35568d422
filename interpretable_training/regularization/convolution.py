"""Convolution with a second derivative that consists of convolutions and gradients of convolutions.

    dx = x~(g, w),  dw = w~(g, x),  db = sum g                                (1)

and of a function of dx, dw and db whose gradients there are v, v_w and v_b:

    to g:  v * w + x * v_w + v_b                                              (2)
    to w:  w~(g, v)                                                           (3)
    to x:  x~(g, v_w)                                                         (4)

All of these are made of the same two functions, and so differentiable again. g: gradient at the output. *: the
convolution; x~ and w~: its gradients with respect to input and weight. Autograd's own second derivative is the same
function, but computes (3) as a convolution of transposed copies, group by group.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Geometry of a convolution, in the order of torch's operators."""

    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    output_padding: Any
    groups: int


class Switch:
    """Switch for the running backward pass."""

    inputs_only = False  # whether gradients of weights and biases are skipped


class Convolution(torch.autograd.Function):
    """Compute the output of a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, switch: Switch) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.biased, ctx.geometry, ctx.switch = b is not None, geometry, switch
        return torch.ops.aten.convolution(x, w, b, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        learned = not ctx.switch.inputs_only
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and learned, ctx.needs_input_grad[2] and learned]
        return *ConvolutionBackward.apply(g, x, w, ctx.geometry, mask), None, None


class ConvolutionBackward(torch.autograd.Function):
    """Compute (1) and its derivatives."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: list[bool]) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, w)
        ctx.geometry = geometry
        return torch.ops.aten.convolution_backward(g, x, w, [g.shape[1]], *geometry, mask)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, v_w: Tensor | None, v_b: Tensor | None) -> Any:
        g, x, w = ctx.saved_tensors
        need_g, need_x, need_w, *_ = ctx.needs_input_grad
        to_g = to_x = to_w = None
        if need_g:
            parts = [] if v is None else [Convolution.apply(v, w, None, ctx.geometry, Switch())]
            parts += [] if v_w is None else [Convolution.apply(x, v_w, None, ctx.geometry, Switch())]
            parts += [] if v_b is None else [v_b.view(-1, *[1] * (g.ndim - 2)).expand_as(g)]
            to_g = sum(parts[1:], start=parts[0]) if parts else None  # (2)
        if need_w and v is not None:
            to_w = ConvolutionBackward.apply(g, v, w, ctx.geometry, [False, True, False])[1]  # (3)
        if need_x and v_w is not None:
            to_x = ConvolutionBackward.apply(g, x, v_w, ctx.geometry, [True, False, False])[0]  # (4)
        return to_g, to_x, to_w, None, None
