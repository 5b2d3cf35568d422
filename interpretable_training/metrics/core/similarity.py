"""Similarities of two maps.

    pearson  = <a - mean a, b - mean b> / (|a - mean a| |b - mean b|)                             (1)
    spearman = pearson of the ranks, equal values sharing the mean of theirs                      (2)
    SSIM     = mean of (2 ma mb + c1)(2 sab + c2) / ((ma^2 + mb^2 + c1)(va + vb + c2))            (3)
    HOG      = spearman or pearson of histograms of oriented gradients                            (4)

a, b: maps (B, *spatial). (3): Wang et al., IEEE TIP 2004; ma, va, sab: mean, variance, covariance under a Gaussian
window of sigma 1.5. (4): Dalal and Triggs, CVPR 2005, as in Adebayo et al., https://arxiv.org/abs/1810.03292.
(3) and (4) look at maps that are each scaled to [0, 1]. A constant map is like nothing: NaN.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.map_operations import blur, degenerate, normalize, one_of

from .rescoring import wide

WINDOW = 11  # side of the window of (3); only where it lies within the map it is looked at
ORIENTATIONS = 9  # of 20 degrees each; a gradient and its opposite have the same
CLIP = 0.2  # of a normalized block, which is then normalized again
EPS = 1e-5


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return (1) of maps (B, *spatial), (B,); NaN where one is constant."""
    flat = degenerate(a) | degenerate(b)
    a, b = (v.to(wide(v)).flatten(1) for v in (a, b))
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    return (torch.cosine_similarity(a, b, dim=1, eps=0)).clamp(-1, 1).masked_fill(flat, torch.nan)  # (1)


def spearman(a: Tensor, b: Tensor, magnitude: bool = False) -> Tensor:
    """Return (2) of maps (B, *spatial), of their magnitudes if asked, (B,); NaN where one is constant."""
    a, b = (v.abs() if magnitude else v for v in (a, b))
    flat = degenerate(a) | degenerate(b)
    return pearson(ranks(a), ranks(b)).masked_fill(flat, torch.nan)  # (2)


def ranks(values: Tensor) -> Tensor:
    """Return the rank (B, *) of each value among those of its row, from 1; equal values share the mean of theirs."""
    rows = values.flatten(1).contiguous()
    ordered = rows.sort(1).values
    below, upto = (torch.searchsorted(ordered, rows, right=right) for right in (False, True))
    return ((below + upto + 1) / 2).to(wide(values)).view(values.shape)


def ssim(a: Tensor, b: Tensor, skimage_compat: bool = False) -> Tensor:
    """Return (3) of maps (B, *spatial), (B,); NaN where one is constant.

    Args:
        a: maps.
        b: maps of the same shape.
        skimage_compat: a range of 2 instead of 1, and variances of samples, as the code of Adebayo et al. has them.
    """
    x, y = scaled(a, b)
    if min(x.shape[1:]) < WINDOW:
        raise ValueError(f"expected maps of at least {WINDOW} pixels a side for SSIM, got {tuple(a.shape)}.")
    samples = WINDOW ** (x.ndim - 1)
    data_range, bias = (2, samples / (samples - 1)) if skimage_compat else (1, 1.0)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ma, mb, aa, bb, ab = (windowed(v) for v in (x, y, x * x, y * y, x * y))
    va, vb, sab = bias * (aa - ma * ma), bias * (bb - mb * mb), bias * (ab - ma * mb)
    local = (2 * ma * mb + c1) * (2 * sab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return local.flatten(1).mean(1).masked_fill(degenerate(a) | degenerate(b), torch.nan)  # (3)


def windowed(v: Tensor) -> Tensor:
    """Return the mean of `v` (B, *spatial) under the window, where it lies within the map."""
    mean = blur(v[:, None], WINDOW, 1.5, "constant")[:, 0]
    for dim in range(1, v.ndim):
        mean = mean.narrow(dim, WINDOW // 2, v.shape[dim] - WINDOW + 1)
    return mean


def hog_similarity(a: Tensor, b: Tensor, correlation: Literal["spearman", "pearson"] = "spearman") -> Tensor:
    """Return (4) of maps (B, H, W), (B,); NaN where one is constant.

    The authors' code takes Spearman's correlation, their text speaks of Pearson's.
    """
    one_of("correlation", correlation, "spearman", "pearson")
    x, y = scaled(a, b)
    rho = (spearman if correlation == "spearman" else pearson)(hog(x), hog(y))
    return rho.masked_fill(degenerate(a) | degenerate(b), torch.nan)  # (4)


def hog(maps: Tensor) -> Tensor:
    """Return histograms of oriented gradients of maps (B, H, W): (B, rows, columns, block * block * 9).

    From 224 pixels a side on cells have 16 and blocks 3 cells a side. Smaller maps have about 14 cells a side, of 4
    pixels or more, and blocks of 2 x 2.
    """
    if maps.ndim != 3:
        raise ValueError(f"expected maps (B, H, W) for a HOG, got {tuple(maps.shape)}.")
    side = min(maps.shape[1:])
    cell, block = cell_and_block(side)
    if side < cell * block:
        raise ValueError(f"expected maps of at least {cell * block} pixels a side for a HOG, got {tuple(maps.shape)}.")
    dy, dx = torch.zeros_like(maps), torch.zeros_like(maps)  # 0 at the border, which has one neighbor only
    dy[:, 1:-1], dx[:, :, 1:-1] = maps[:, 2:] - maps[:, :-2], maps[:, :, 2:] - maps[:, :, :-2]
    angle = torch.atan2(dy, dx).rad2deg() % 180
    # A little is added so that 0 degrees and what rounding makes of it, just below 180, get the same bin.
    orientation = (angle / (180 / ORIENTATIONS) + 1e-6).long() % ORIENTATIONS
    votes = maps.new_zeros(len(maps), ORIENTATIONS, *maps.shape[1:])
    votes.scatter_(1, orientation[:, None], torch.hypot(dy, dx)[:, None])
    cells = F.avg_pool2d(votes, cell)  # pixels that fill no cell are left out
    blocks = cells.unfold(2, block, 1).unfold(3, block, 1)  # (B, 9, rows, columns, block, block)
    blocks = blocks.permute(0, 2, 3, 4, 5, 1).flatten(3)
    clipped = (blocks / size(blocks)).clamp(max=CLIP)
    return clipped / size(clipped)


def cell_and_block(side: int) -> tuple[int, int]:
    """Return pixels of a cell and cells of a block, a side, for maps of `side` pixels."""
    return (16, 3) if side >= 224 else (max(4, side // 14), 2)


def size(blocks: Tensor) -> Tensor:
    """Return the norm of each block (..., D), a little larger so that empty ones can be divided by it."""
    return (blocks.square().sum(-1, keepdim=True) + EPS**2).sqrt()


def scaled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps in [0, 1], in float64; those that are constant or not numbers become zero."""
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"expected maps (B, H, W) of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    zero = [degenerate(v).view(-1, *[1] * (v.ndim - 1)) for v in (a, b)]
    return normalize(a.to(wide(a)).masked_fill(zero[0], 0)), normalize(b.to(wide(b)).masked_fill(zero[1], 0))
