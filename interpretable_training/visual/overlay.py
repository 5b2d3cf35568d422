"""A map laid over its image."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from interpretable_training.journal import ends, levels

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


def overlay(
    pictures: Tensor, saliency: Tensor, strength: float = STRENGTH, scale: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Pictures in [0, 1] (B, C, H, W) under their maps (B, H, W): uint8 (B, H, W, 3).

    Where the map is low the picture shows in gray, where it is high the color map's bright end covers it.

    Args:
        pictures: What the maps explain.
        saliency: Raw maps.
        strength: How much of the picture the brightest color covers.
        scale: Values of the dark and the bright end, one pair for all maps or (B, 2). None gives each map its own: from
            its least value to one that a percent of its pixels exceed, so that single pixels do not darken all others.
    """
    S = saliency.detach().float().nan_to_num().cpu()
    own = ends(S) if scale is None else torch.as_tensor(scale).float().cpu().expand(len(S), 2)
    S = levels(S, own)
    heat = color_table()[(S * 256).long().clamp(max=255)]
    gray = pictures.detach().float().cpu().mean(1)[..., None].clamp(0, 1)
    weight = strength * (FLOOR + (1 - FLOOR) * S[..., None])
    return ((1 - weight) * gray + weight * heat).mul(255).round().byte()
