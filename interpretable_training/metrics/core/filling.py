"""Replacement of pixels by their neighbors, by one color, or by what `Replacement` makes of the image."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.options import check_fields

from .base import Fact
from .imputation import impute
from .perturbation import Replacement, Substrate
from .rescoring import only_images

Fill = Literal["linear"] | Substrate


@dataclass(frozen=True)
class Filling:
    """Replace pixels of images.

    Args:
        substrate: "linear" is what neighbors make of them (`impute`); all others are those of `Replacement`.
        mean: the normalization's, one per channel, for "black".
        std: see `mean`.
        seed: of "uniform" values.
    """

    substrate: Fill | Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, images: Tensor, gone: Tensor) -> Tensor:
        """Return `images` (B, C, *spatial) with the pixels `gone` (B, *spatial) replaced; some pixel has to stay."""
        if self._replacement is None:
            return impute(only_images(images), gone)
        return torch.where(gone[:, None], self._replacement(images), images)

    def with_normalization(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> "Filling":
        """Return the same with the mean and std of the data, where none were given."""
        return self if self.mean is not None else replace(self, mean=mean, std=std)

    @property
    def key(self) -> tuple[object, ...]:
        """Return a key that is the same for equal fillings."""
        return tuple(self.facts().values())

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport."""
        return {"substrate": "linear imputation"} if self._replacement is None else self._replacement.facts()

    @property
    def _replacement(self) -> Replacement | None:
        """Return what makes the new pixels; None where their neighbors do."""
        if isinstance(self.substrate, str) and self.substrate == "linear":
            return None
        return Replacement(self.substrate, mean=self.mean, std=self.std, seed=self.seed)
