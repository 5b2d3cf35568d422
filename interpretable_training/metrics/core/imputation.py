"""Noisy linear imputation. Rong et al., ICML 2022, https://arxiv.org/abs/2202.00449

    sum over neighbors n of p of w[n] (z[p] - z[n]) = 0  for each missing pixel p    (1)
    w = 1/6 beside, above and below, 1/12 at the corners

z: image, known pixels as they are. Neighbors outside the image are left out. (1) is symmetric and positive definite as
long as some pixel is known, so conjugate gradients solve it, for all images and channels at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.base import full

ROUNDS = 2000
LOOK = 10  # rounds between two looks at the error, each of which waits for the device


def impute(images: Tensor, missing: Tensor) -> Tensor:
    """Fill the missing pixels (B, H, W) of `images` (B, C, H, W) by (1), without noise."""
    dtype, images, hole = images.dtype, full(images), missing[:, None]
    if bool(hole.flatten(1).all(1).any()):
        raise ValueError("expected a known pixel in each image, got one of which all are missing; remove fewer.")
    known = torch.where(hole, 0, images)
    degree = neighbors(torch.ones_like(known[:1, :1]))
    b = neighbors(known) * hole
    z = torch.where(hole, spread(known, ~hole), 0)  # a good start saves most rounds

    r = b - (degree * z - neighbors(z)) * hole
    p = r.clone()
    rr = dot(r, r)
    tolerance = (100 * torch.finfo(images.dtype).eps) ** 2 * dot(b, b)
    for turn in range(ROUNDS):
        if turn % LOOK == 0 and not bool((rr > tolerance).any()):
            break
        Ap = (degree * p - neighbors(p)) * hole
        alpha = rr / dot(p, Ap).clamp(min=torch.finfo(rr.dtype).tiny)
        z, r = z + alpha * p, r - alpha * Ap
        rr, before = dot(r, r), rr
        p = r + rr / before.clamp(min=torch.finfo(rr.dtype).tiny) * p
    return torch.where(hole, z, images).to(dtype)


def neighbors(z: Tensor) -> Tensor:
    """Return the sum over neighbors n of w[n] z[n], (B, C, H, W)."""
    z = F.pad(z, (1, 1, 1, 1))
    across = z[..., :-2] + z[..., 2:]  # left and right, (B, C, H + 2, W)
    upright = z[..., :-2, 1:-1] + z[..., 2:, 1:-1]
    corners = across[..., :-2, :] + across[..., 2:, :]
    return (across[..., 1:-1, :] + upright) / 6 + corners / 12


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b> of each channel, (B, C, 1, 1)."""
    return (a * b).sum((2, 3), keepdim=True)


def spread(values: Tensor, known: Tensor) -> Tensor:
    """Fill `values` (B, C, H, W), zero where not known, with means of known pixels at coarser and coarser scales."""
    if bool(known.all()) or max(values.shape[2:]) == 1:
        return values
    weight = F.avg_pool2d(known.to(values), 2, ceil_mode=True)
    mean = F.avg_pool2d(values, 2, ceil_mode=True) / weight.masked_fill(weight == 0, 1)
    coarse = F.interpolate(spread(mean, weight > 0), values.shape[2:], mode="bilinear")
    return torch.where(known, values, coarse)
