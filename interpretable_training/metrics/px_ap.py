"""Pixel average precision of maps. Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437

    TP(t) = number of pixels with S >= t in U, FP(t) = number of pixels with S >= t outside of U    (1)
    P(t)  = TP(t) / (TP(t) + FP(t)), R(t) = TP(t) / TP(0)                                           (2)
    PxAP  = 100 sum over t of P(t) (R(t) - R(t')), t' the threshold above t, R(t') = 0 above 1      (3)

U: pixels of the object. t: thresholds 0, 1 / steps, ..., 1. (1) counts the pixels of all images together, but for those
that are to be ignored: those of `ignore_mask` that are not in U. Differs from the authors' code: images without an
object are left out, where the authors would count their pixels as outside.
"""

from typing import Any

import torch
from torch import Tensor

from .core.base import Fact
from .core.regions import ignored_pixels, pixels_of
from .core.rescoring import ScoredBatch, wide
from .localization import RegionMetric
from .pointing import size_of


class PxAP(RegionMetric):
    """Area under the curve of precision over recall of the pixels of all images, in percent (3).

    It needs no best threshold. Its number is no mean of numbers of single images, since one curve serves all.

    >>> S = torch.eye(8)[None]
    >>> PxAP().measure(saliency=S, mask=S > 0.5).tolist()
    [100.0]

    Args:
        steps: thresholds below 1; the authors take 100 where they evaluate maps from files, and 1000 while they train.
            Each image keeps two numbers for each of them.
    """

    higher_is_better = True
    formula = "sum over t of P(t) (R(t) - R(t')), P and R of the pixels of all images with S >= t, t' the next t above"
    preferred = "mask"

    def __init__(self, steps: int = 100, **kwargs: Any) -> None:
        if steps < 1:
            raise ValueError(f"expected steps of at least 1, got {steps}.")
        self.steps = steps
        self.columns = 2 * (steps + 1)
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "steps": self.steps}

    def update(
        self,
        saliency: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Any = None,
        shortcut_mask: Tensor | None = None,
        ignore_mask: Tensor | None = None,
    ) -> None:
        """Add a batch as `RegionMetric.update`, with the pixels (B, H, W) that are neither object nor background."""
        self.collect(saliency=saliency, mask=mask, boxes=boxes, shortcut_mask=shortcut_mask, ignore_mask=ignore_mask)

    def values(self, scored: ScoredBatch) -> Tensor:
        """Count pixels in U, then outside of it, by the highest threshold (1) that they reach: (B, 2 (steps + 1))."""
        S, U = scored.saliency.flatten(1), pixels_of(scored, self.region).flatten(1)
        t = torch.arange(self.steps + 1, device=S.device, dtype=wide(S)) / self.steps
        bins = torch.searchsorted(t, S.to(t).nan_to_num(0), right=True) - 1  # a map of NaN has no number anyway
        bins = torch.where(U, bins, bins + self.steps + 1)
        counted = torch.ones_like(bins)
        if (ignored := ignored_pixels(scored)) is not None:
            counted = counted.masked_fill(ignored.flatten(1) & ~U, 0)
        counts = torch.zeros(len(S), self.columns, dtype=bins.dtype, device=S.device).scatter_add_(1, bins, counted)
        return counts.to(t).masked_fill((size_of(scored, self.region) == 0)[:, None], torch.nan)

    def aggregate(self, means: Tensor) -> Tensor:
        inside, outside = means.unflatten(-1, (2, self.steps + 1)).flip(-1).unbind(-2)  # from the highest threshold on
        TP, FP = inside.cumsum(-1), outside.cumsum(-1)  # (1)
        P = TP / (TP + FP).masked_fill(TP + FP == 0, 1)  # (2)
        return 100 * (P * inside).sum(-1) / TP[..., -1]  # (3)
