"""Saliency maps over the images that they explain."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .map_levels import map_levels, map_scales

STRENGTH = 0.65  # how much of the picture the brightest color covers
FLOOR = 0.35  # the share of it that the darkest color covers


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalized images (B, C, H, W) as pictures in [0, 1]: x * std + mean.

    >>> denormalize(images, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).shape
    torch.Size([4, 3, 16, 16])
    """
    m, s = (torch.as_tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std))
    return (images * s + m).clamp(0, 1)


def in_thirds(stack: Tensor, dim: int) -> Tensor:
    """Return the slices in the middle of each third of a dimension side by side; all where these are fewer than three.

    >>> in_thirds(torch.arange(6.0).reshape(6, 1, 1), 0)
    tensor([[1., 3., 5.]])
    """
    D = stack.shape[dim]
    shown = sorted({(2 * third + 1) * D // 6 for third in range(3)})
    return torch.cat([stack.select(dim, i) for i in shown], -1)


@functools.cache
def color_table() -> Tensor:
    """Return the colors of the levels, from dark to bright: (256, 3) in [0, 1]."""
    from matplotlib import colormaps  # imported late, because it takes a second

    return torch.from_numpy(colormaps["inferno"](range(256))[:, :3]).float()


def on_picture(saliency: Tensor, pictures: Tensor) -> Tensor:
    """Return maps (B, *spatial) as planes (B, H, W) for pictures (B, C, H, W).

    A volume shows three slices side by side, as its picture does. The time of a signal runs from left to right.
    """
    S = saliency.detach().float().cpu()
    if S.ndim == 4:
        return in_thirds(S, 1)
    if S.ndim == 2:
        return F.interpolate(S[:, None], pictures.shape[3], mode="area").expand(-1, pictures.shape[2], -1)
    return S


def overlay(
    pictures: Tensor, saliency: Tensor, strength: float = STRENGTH, scale: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Draw maps over their pictures: uint8 (B, H, W, 3).

    The picture shows in gray where the map is low, and under bright colors where the map is high.

    >>> overlay(images.sigmoid(), saliency).shape
    torch.Size([4, 16, 16, 3])

    Args:
        pictures: The explained images in [0, 1], (B, C, H, W).
        saliency: Raw maps (B, H, W), also of volumes (B, D, H, W) and signals (B, T), see `on_picture`.
        strength: Share of the picture that the brightest color covers.
        scale: Values of the dark and the bright end, one pair for all maps or (B, 2). None gives each map its own: from
            its least value to one that a percent of its pixels exceed, so that single pixels do not darken all others.
    """
    S = on_picture(saliency, pictures).nan_to_num()
    scales = map_scales(S) if scale is None else torch.as_tensor(scale).float().cpu().expand(len(S), 2)
    S = map_levels(S, scales)
    heat = color_table()[(S * 256).long().clamp(max=255)]
    gray = pictures.detach().float().cpu().mean(1)[..., None].clamp(0, 1)
    weight = strength * (FLOOR + (1 - FLOOR) * S[..., None])
    return ((1 - weight) * gray + weight * heat).mul(255).round().byte()
