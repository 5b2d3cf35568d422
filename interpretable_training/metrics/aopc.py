"""AOPC, the area over the perturbation curve. Samek et al., IEEE TNNLS 2017, https://arxiv.org/abs/1509.06321

    AOPC = 100/(L + 1) * mean over images of sum over k = 0..L of (s(x[0]) - s(x[k]))    (1)

x[k]: the image without its k most salient patches. s: probability of the class.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.map_operations import one_of

from .core.base import Fact, RescoringMetric, as_tuple
from .core.perturbation import Replacement, Substrate, rank_patches
from .core.rescoring import Kind, ScoredBatch, kind_index, only_images


class AOPC(RescoringMetric):
    """Drop of the class probability while the most salient patches are removed (1), in percent.

    >>> AOPC(patch=4, steps=3).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        patch: side of a patch in pixels; those at the border may be smaller.
        steps: L, how many patches are removed one after the other.
        substrate: what they are replaced by: "min", the image's lowest value (Quantus calls it black), "uniform"
            random values (the authors), "mean", "black", "blur", "gaussian" or a tensor.
        mean: the normalization's, which the substrate "black" needs; with `std`.
        std: see `mean`.
        score: the score that is followed: "prob" of a softmax, "sigmoid" for several labels, or "logit".
        seed: of the "uniform" substrate.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    higher_is_better = True
    formula = "mean over k = 0..L of p(x) - p(x without its k most salient patches)"
    bounds = (-100.0, 100.0)

    def __init__(
        self,
        patch: int = 14,
        steps: int = 10,
        substrate: Substrate | Tensor = "min",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        score: Literal["prob", "sigmoid", "logit"] = "prob",
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("score", score, "prob", "sigmoid", "logit")
        if patch < 1 or steps < 1:
            raise ValueError(f"expected patch and steps of at least 1, got patch={patch}, steps={steps}.")
        self.patch, self.steps = patch, steps
        self.replacement = Replacement(substrate, mean=as_tuple(mean), std=as_tuple(std), seed=seed)
        self.score: Kind = score
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {
            "score": self.score,
            "patch": self.patch,
            "steps": self.steps,
            **self.replacement.facts(),
        }

    def values(self, scored: ScoredBatch) -> Tensor:
        x = only_images(scored.images)
        rank = rank_patches(scored.saliency, self.patch)
        patches = int(rank.max()) + 1
        if patches < self.steps:
            raise ValueError(
                f"expected at least {self.steps} patches of {self.patch} pixels a side in images "
                f"{tuple(x.shape[2:])}, got {patches}; pass a smaller patch or fewer steps."
            )
        r = self.replacement(x)
        image = torch.arange(len(x), device=x.device).repeat_interleave(self.steps)
        removed = torch.arange(1, self.steps + 1, device=x.device).repeat(len(x))[:, None, None]

        def make(rows: slice) -> Tensor:
            gone = rank[image[rows]] < removed[rows]
            return torch.where(gone[:, None], r[image[rows]], x[image[rows]])

        s = scored.rescore(make, image)[:, kind_index(self.score)].view(len(x), self.steps)
        s0 = scored.clean_scores()[:, kind_index(self.score)]
        return 100 * (s0[:, None] - s).sum(1) / (self.steps + 1)  # (1), whose term k = 0 is 0
