"""Batch norm in training mode whose second derivative takes a few operations instead of some thirty.

    dx = gamma / sigma (g - mean g - x^ b),  b = mean(g x^)                               (1)
    dgamma = M b,  dbeta = M mean g                                                       (2)

and of a function of dx, dgamma and dbeta whose gradients there are v, v_gamma and v_beta, with a = mean(v x^) and
q = mean(v g) - mean v mean g - a b:

    to g:      gamma / sigma (v - mean v - x^ a) + v_gamma x^ + v_beta                    (3)
    to gamma:  M q / sigma                                                                (4)
    to x:      - gamma / sigma^2 (q x^ + b (v - mean v - x^ a) + a (g - mean g - x^ b))
               + v_gamma / sigma (g - mean g - x^ b)                                      (5)

g: gradient at the output. x^ = (x - mu) / sigma. Means are over the M numbers of a channel. Autograd's own second
derivative is the same function, but takes longer than the convolutions around it, because all of it waits for memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `F.batch_norm`."""
    single = x.numel() == x.shape[1]  # torch raises an error for it
    if not training or single:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
    assert isinstance(y, Tensor)
    return y


class BatchNorm(torch.autograd.Function):
    """Compute the output of batch norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
    ) -> Tensor:
        y, mu, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mu, inverse)
        ctx.biased, ctx.eps = bias is not None, eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, mu, inverse = ctx.saved_tensors
        dx, dgamma, dbeta = BatchNormBackward.apply(g, x, weight, mu, inverse, ctx.eps)
        return dx, None if weight is None else dgamma, dbeta if ctx.biased else None, None, None, None, None


class BatchNormBackward(torch.autograd.Function):
    """Compute (1), (2) and their derivatives."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Any, mu: Tensor, inverse: Tensor, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        mask = [True, True, True]
        gradients = torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mu, inverse, True, eps, mask)
        _, dgamma, dbeta = gradients
        ctx.save_for_backward(g, x, weight, mu, inverse, dgamma, dbeta)
        ctx.eps = eps
        return gradients

    @staticmethod
    def backward(ctx: Any, v: Any, v_gamma: Any, v_beta: Any) -> Any:
        g, x, weight, mu, inverse, dgamma, dbeta = ctx.saved_tensors
        M, dims = x.numel() // x.shape[1], [0, *range(2, x.ndim)]
        dtype = mu.dtype  # float32 at least, also in mixed precision

        def per_channel(channel: Tensor) -> Tensor:  # (C,) in the shape of (B, C, ...)
            return channel.to(dtype).view(-1, *[1] * (x.ndim - 2))

        def mean(tensor: Tensor) -> Tensor:
            return per_channel(tensor.sum(dims) / M)

        if torch.is_grad_enabled():  # to be differentiated again: nothing may be constant
            x32, g32 = x.to(dtype), g.to(dtype)
            inverse = (x32.var(dims, correction=0) + ctx.eps).rsqrt()
            hat = (x32 - mean(x32)) * per_channel(inverse)
            sigma_inverse, b, mean_g = per_channel(inverse), mean(g32 * hat), mean(g32)
        else:
            sigma_inverse, b, mean_g = per_channel(inverse), per_channel(dgamma / M), per_channel(dbeta / M)
            hat = (x.to(dtype) - per_channel(mu)).mul_(sigma_inverse)
        gamma = 1.0 if weight is None else per_channel(weight)
        v = torch.zeros_like(g, dtype=dtype) if v is None else v.to(dtype)
        v_gamma = 0.0 if v_gamma is None else per_channel(v_gamma)
        v_beta = 0.0 if v_beta is None else per_channel(v_beta)
        mean_v, a = mean(v), mean(v * hat)
        q = mean(v * g) - mean_v * mean_g - a * b
        alpha = gamma * sigma_inverse
        to_g = (v * alpha).addcmul_(hat, v_gamma - alpha * a).add_(v_beta - alpha * mean_v)  # (3)
        to_gamma = None if weight is None else (M * q * sigma_inverse).flatten().to(weight.dtype)  # (4)
        cv, cg = -alpha * b * sigma_inverse, (v_gamma - alpha * a) * sigma_inverse
        ch = -sigma_inverse * (alpha * (q - 2 * a * b) + v_gamma * b)
        to_x = (v * cv).addcmul_(g.to(dtype), cg).addcmul_(hat, ch).sub_(cv * mean_v + cg * mean_g)  # (5)
        return to_g.to(g.dtype), to_x.to(x.dtype), to_gamma, None, None, None
