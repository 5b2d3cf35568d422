"""ROAD, remove and debias. Rong et al., ICML 2022, https://arxiv.org/abs/2202.00449

    ROAD = 1/2 * mean over q of (s(x without the q % least salient pixels) - s(x without the q % most salient))    (1)

s: probability of the class, or 1 where it is the predicted one. Removed pixels are imputed from their neighbors
(`impute`), with a little noise, so that the shape of what is missing gives nothing away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.batching import seeded_noise
from interpretable_training.attribution.core.map_operations import one_of

from .core.base import Fact, RescoringMetric, joined_numbers
from .core.imputation import impute
from .core.perturbation import rank_pixels
from .core.rescoring import Kind, ScoredBatch, kind_index, only_images

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


@dataclass(frozen=True)
class Removal:
    """Percentages of removed pixels, and the noise that hides the removal."""

    percentages: tuple[float, ...] = PERCENTAGES
    noise: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.percentages or not all(0 < q < 100 for q in self.percentages):
            raise ValueError(f"expected percentages above 0 and below 100, got {self.percentages}.")

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport."""
        return {
            "percentages": joined_numbers(self.percentages),
            "imputation": "linear",
            "noise": self.noise,
            "seed": self.seed,
        }

    def scores(self, scored: ScoredBatch, score: Kind) -> Tensor:
        """Return s (B, 2, Q) without the most and without the least salient pixels."""
        return scored.once(self, lambda: self._scores(scored))[..., kind_index(score)]

    def value(self, scored: ScoredBatch, score: Kind) -> Tensor:
        """Return (1), (B,)."""
        most, least = self.scores(scored, score).unbind(1)
        return (least - most).mean(1) / 2  # (1)

    def _scores(self, scored: ScoredBatch) -> Tensor:
        """Return the scores (B, 2, Q, S)."""
        x = only_images(scored.images)
        pixels = x[0, 0].numel()
        removed = torch.tensor([round(q / 100 * pixels) for q in self.percentages], device=x.device)
        if not 0 < int(removed.min()) <= int(removed.max()) < pixels:
            raise ValueError(
                f"expected percentages that remove some of the {pixels} pixels and not all, got {self.percentages}."
            )
        rank = rank_pixels(scored.saliency)
        noise = self.noise * seeded_noise(self.seed, x.shape[1:], x)
        B, Q = len(x), len(removed)
        image = torch.arange(B, device=x.device).repeat_interleave(2 * Q)
        least = torch.arange(2, device=x.device).repeat_interleave(Q).repeat(B).bool()
        count = removed.repeat(2 * B)

        def make(rows: slice) -> Tensor:
            place = rank[image[rows]]
            place = torch.where(least[rows, None, None], pixels - 1 - place, place)
            gone = place < count[rows, None, None]
            return impute(x[image[rows]], gone) + noise * gone[:, None]

        return scored.rescore(make, image).view(B, 2, Q, -1)


class ROAD(RescoringMetric):
    """Half the difference of the scores without the least and without the most salient pixels (1), in percent.

    >>> ROAD((20, 50)).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        percentages: q, each above 0 and below 100.
        score: the score: "prob" of a softmax, "accuracy" (the authors), "sigmoid" for several labels, or "logit".
        noise: standard deviation of what is added to imputed pixels.
        seed: of the noise, which is the same for all images.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    higher_is_better = True
    formula = "half the mean over q of s(without the q % least salient) - s(without the q % most salient)"
    bounds = (-50.0, 50.0)

    def __init__(
        self,
        percentages: Sequence[float] = PERCENTAGES,
        score: Literal["prob", "accuracy", "sigmoid", "logit"] = "prob",
        noise: float = 0.01,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("score", score, "prob", "accuracy", "sigmoid", "logit")
        self.removal = Removal(tuple(percentages), noise, seed)
        self.score: Kind = score
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {"score": self.score, **self.removal.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        return 100 * self.removal.value(scored, self.score)

    def curves(self, scored: ScoredBatch) -> dict[str, Tensor]:
        """Return s (B, Q) after each percentage, by what was removed."""
        most, least = self.removal.scores(scored, self.score).unbind(1)
        return {"most salient removed": most, "least salient removed": least}
