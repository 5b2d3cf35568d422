"""A map laid over its image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interpretable_training.attribution import normalize


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, C, H, W) as pictures in [0, 1]: x * std + mean."""
    m, s = (torch.as_tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std))
    return (images * s + m).clamp(0, 1)


def overlay(pictures: Tensor, saliency: Tensor, strength: float = 0.65) -> Tensor:
    """Pictures in [0, 1] (B, C, H, W) under their maps (B, H, W), each on its own scale: uint8 (B, H, W, 3).

    Where the map is low the picture shows in gray, where it is high the color map's bright end covers it. A percent of
    the pixels may be brighter than the scale, so that single pixels do not darken all others.
    """
    from matplotlib import colormaps  # here, because it takes a second

    S = saliency.detach().float().nan_to_num().cpu()
    top = S.flatten(1).quantile(0.99, 1)[:, None, None]
    S = normalize(torch.where(top > S.amin((1, 2), keepdim=True), S.minimum(top), S))
    heat = torch.from_numpy(colormaps["inferno"](S.numpy())[..., :3]).float()
    gray = pictures.detach().float().cpu().mean(1)[..., None].clamp(0, 1)
    weight = strength * (0.35 + 0.65 * S[..., None])
    return ((1 - weight) * gray + weight * heat).mul(255).round().byte()
