"""A map laid over its image."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.report.journal import ends, levels

STRENGTH = 0.65  # how much of the picture the brightest color covers
FLOOR = 0.35  # the share of it that the darkest color covers


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, C, H, W) as pictures in [0, 1]: x * std + mean."""
    m, s = (torch.as_tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std))
    return (images * s + m).clamp(0, 1)


@functools.cache
def color_table() -> Tensor:
    """The colors of the levels, from dark to bright: (256, 3) in [0, 1]."""
    from matplotlib import colormaps  # here, because it takes a second

    return torch.from_numpy(colormaps["inferno"](range(256))[:, :3]).float()


def on_picture(saliency: Tensor, pictures: Tensor) -> Tensor:
    """Maps (B, *spatial) as they lie on pictures (B, C, H, W): (B, H, W).

    Of a volume the middle slice, as in the picture; a signal's time runs from left to right.
    """
    S = saliency.detach().float().cpu()
    if S.ndim == 4:
        return S[:, S.shape[1] // 2]
    if S.ndim == 2:
        return F.interpolate(S[:, None], pictures.shape[3], mode="area").expand(-1, pictures.shape[2], -1)
    return S


def overlay(
    pictures: Tensor, saliency: Tensor, strength: float = STRENGTH, scale: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Pictures in [0, 1] (B, C, H, W) under their maps (B, H, W): uint8 (B, H, W, 3).

    Where the map is low the picture shows in gray, where it is high the color map's bright end covers it.

    Args:
        pictures: What the maps explain.
        saliency: Raw maps; also those of volumes (B, D, H, W) and signals (B, T), see `on_picture`.
        strength: How much of the picture the brightest color covers.
        scale: Values of the dark and the bright end, one pair for all maps or (B, 2). None gives each map its own: from
            its least value to one that a percent of its pixels exceed, so that single pixels do not darken all others.
    """
    S = on_picture(saliency, pictures).nan_to_num()
    own = ends(S) if scale is None else torch.as_tensor(scale).float().cpu().expand(len(S), 2)
    S = levels(S, own)
    heat = color_table()[(S * 256).long().clamp(max=255)]
    gray = pictures.detach().float().cpu().mean(1)[..., None].clamp(0, 1)
    weight = strength * (FLOOR + (1 - FLOOR) * S[..., None])
    return ((1 - weight) * gray + weight * heat).mul(255).round().byte()
