"""Explanation images: an image seen through its map.

    mask(x, S) = norm(denorm(x) * S)    (1)  in pixel space: S = 0 is black
    mask(x, S) = x * S                  (2)  in normalized space: S = 0 is the mean color

x: normalized image. S: map in [0, 1]. Without the mean and std of the normalization, (1) cannot be told from (2).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.map_operations import mask_images
from interpretable_training.attribution.core.options import check_fields

from .base import Fact, joined_numbers
from .perturbation import rank_pixels
from .rescoring import ScoredBatch

Space = Literal["pixel", "normalized"]


@dataclass(frozen=True)
class Masking:
    """Multiply images by their maps.

    Args:
        space: where the product is taken, (1) or (2).
        mean: the normalization's, one per channel.
        std: the normalization's, one per channel.
        topk: keep this percentage of the pixels as they are and none of the others, instead of fading by S.
    """

    space: Space = "pixel"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    topk: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return `images` (B, C, *spatial) through what `mask_of` made of the maps."""
        return mask_images(images, mask, *(self.black or ()))  # (1), (2)

    def mask_of(self, saliency: Tensor) -> Tensor:
        """Return what images are multiplied with: the map, or its highest pixels."""
        if self.topk is None:
            return saliency
        highest = rank_pixels(saliency) < round(self.topk / 100 * saliency[0].numel())
        return torch.where(saliency.isnan(), torch.nan, highest.to(saliency))

    def with_normalization(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> "Masking":
        """Return the same with the mean and std of the data, where none were given."""
        return self if self.mean is not None else replace(self, mean=mean, std=std)

    @property
    def black(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and std where they decide something, else None."""
        return (self.mean, self.std) if self.space == "pixel" and self.mean and self.std else None

    @property
    def key(self) -> tuple[object, ...]:
        """Return a key that is the same for equal masked images."""
        return ("masked", self.black, self.topk)

    def scores(self, scored: ScoredBatch, inverse: bool = False) -> Tensor:
        """Return scores (B, S) of the images through their maps, or through what the maps leave out."""

        def compute() -> Tensor:
            M = self.mask_of(scored.saliency)
            M = 1 - M if inverse else M
            rows = torch.arange(len(M), device=M.device)
            return scored.rescore(lambda part: self(scored.images[part], M[part]), rows)

        return scored.once((*self.key, inverse), compute)

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport."""
        mean, std = self.black or (None, None)
        return {
            "mask_space": "normalized" if self.black is None else "pixel",
            "mask_mean": joined_numbers(mean),
            "mask_std": joined_numbers(std),
            "mask": "map" if self.topk is None else f"highest {self.topk:g} percent of the pixels",
        }
