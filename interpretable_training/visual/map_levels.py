"""Scales of saliency maps and their levels in [0, 1], for overlays and for the files of a journal."""

import torch
from torch import Tensor

TOP = 0.99  # quantile of a map that becomes the bright end, so that single pixels do not darken the others


def map_scales(maps: Tensor) -> Tensor:
    """Return the scale (n, 2) of each map (n, H, W): its least value, and one that a percent of its pixels exceed."""
    values = maps.flatten(1)
    low, top = values.amin(1), values.quantile(TOP, 1)
    return torch.stack([low, torch.where(top > low, top, values.amax(1))], 1)


def map_levels(maps: Tensor, scales: Tensor) -> Tensor:
    """Return maps (n, h, w) in [0, 1] between the ends of their scales (n, 2); zero where a scale has no extent."""
    low, high = scales[:, :1, None], scales[:, 1:, None]
    extent = high - low
    return ((maps - low) / torch.where(extent > 0, extent, torch.inf)).clamp(0, 1)
