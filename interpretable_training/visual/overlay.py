"""A map laid over its image."""

import torch
from torch import Tensor

from interpretable_training.attribution import normalize


def overlay(pictures: Tensor, saliency: Tensor, strength: float = 0.65) -> Tensor:
    """Pictures in [0, 1] (B, C, H, W) under their maps (B, H, W), each on its own scale: uint8 (B, H, W, 3).

    Where the map is low the picture shows in gray, where it is high the color map's bright end covers it.
    """
    from matplotlib import colormaps  # here, because it takes a second

    S = normalize(saliency.detach().float().nan_to_num()).cpu()
    heat = torch.from_numpy(colormaps["inferno"](S.numpy())[..., :3]).float()
    gray = pictures.detach().float().cpu().mean(1)[..., None].clamp(0, 1)
    weight = strength * (0.35 + 0.65 * S[..., None])
    return ((1 - weight) * gray + weight * heat).mul(255).round().byte()
