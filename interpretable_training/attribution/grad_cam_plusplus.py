"""Grad-CAM++. Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063

    a[k, i, j] = g^2 / (2 g^2 + D g^3), 0 where g = 0                   (1)
    w[k]       = sum over i, j of a[k, i, j] relu(g[k, i, j])           (2)
    S          = relu(sum over k of w[k] A[k])                          (3)
    D g^3      = (sum over a, b of A[k, a, b]) g[k, i, j]^3             (4) "sum_act"
               = sum over a, b of A[k, a, b] g[k, a, b]^3               (5) "sum_act_grad"
               = mean over a, b of A[k, a, b] g[k, a, b]^3              (6) "mean_act_grad"

g = dy/dA, y: logit. The paper differentiates exp(y); with y piecewise linear in A its second and third derivatives are
exp(y) g^2 and exp(y) g^3: exp(y) cancels in (1) and is one positive factor of the map in (2), left out unless `exp`.
Differs from the paper: a[k] is not divided by its sum over g > 0; `alpha_norm=True` does that, as the authors' code.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import GradientCAM

Denominator = Literal["sum_act", "sum_act_grad", "mean_act_grad"]
EPS = 1e-8


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """Weight the channels of a layer by their positive gradients, each cell by the ratio (1).

    >>> GradCAMPlusPlus()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        denominator: the second term of (1): (4) as pytorch-grad-cam, (5) as torch-cam, (6) as the thesis.
        alpha_norm: divide a[k] by its sum over g > 0, as the authors' code does.
        exp: keep the factor exp(y) of the weights, which changes only the scale of the map.
    """

    denominator: Denominator = "sum_act"
    alpha_norm: bool = False
    exp: bool = False

    def rescale(self, S: Tensor, y: Tensor) -> Tensor:
        return S * _unflatten(y[:, None], S[:, None])[:, 0].exp() if self.exp else S

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        a = gradient_ratio(A, dA**2, dA**2, dA**3, self.denominator)  # (1)
        if self.alpha_norm:
            total = (a * (dA > 0)).flatten(2).sum(2)
            a = a / _unflatten(torch.where(total == 0, 1, total), a)
        w = (a * dA.relu()).flatten(2).sum(2)  # (2), (B, K)
        return torch.einsum("bk,bk...->b...", w, A)  # (3)


def gradient_ratio(A: Tensor, top: Tensor, g2: Tensor, g3: Tensor, denominator: Denominator) -> Tensor:
    """Return the ratio (1) with `top` as its numerator, (B, K, *spatial)."""
    if denominator == "sum_act":
        second = _unflatten(A.flatten(2).sum(2), A) * g3  # (4)
    elif denominator == "sum_act_grad":
        second = _unflatten((A * g3).flatten(2).sum(2), A)  # (5)
    else:
        second = _unflatten((A * g3).flatten(2).mean(2), A)  # (6)
    safe = torch.where(g2 == 0, 1, g2)
    # Numerator and denominator are divided by g^2, so that the ratio does not depend on the size of the gradients.
    return torch.where(g2 == 0, 0, top / safe / away_from_zero(2 + second / safe))


def _unflatten(w: Tensor, A: Tensor) -> Tensor:
    """Return weights (B, K) in a shape that multiplies `A` (B, K, *spatial)."""
    return w.reshape(*w.shape, *[1] * (A.ndim - 2))


def away_from_zero(d: Tensor) -> Tensor:
    """Return the denominator `d` with values between -EPS and EPS moved to the bound of their sign."""
    return torch.where(d.abs() < EPS, torch.where(d < 0, -EPS, EPS), d)
