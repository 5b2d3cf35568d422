"""Share of the map on the object, and position of its highest point.

    SP = 100 1[argmax S in U]                                               (1)
    EP = 100 (sum over U of S) / (sum of S)                                 (2)
    F1 = 100 2 P R / (P + R),  P = (2), R = (sum over U of S) / |U|          (3)

U: pixels of the object. (1): Zhang et al., IJCV 2018, https://arxiv.org/abs/1608.00507. (2): Wang et al., CVPR-W 2020,
https://arxiv.org/abs/1910.01279. (3): as in Zhang et al., Opti-CAM. 0/0 is 0. Of a map that is exchangeable noise the
expected value of (1) and of (2) is 100 |U| / (H W), exactly.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.map_operations import one_of

from .core.base import Fact, resolve
from .core.regions import Region, area, boxes, maps, pixels_of
from .core.rescoring import ScoredBatch, wide
from .functional import ratio_or_zero
from .localization import RegionMetric

EPS = 1e-6  # of the published F1
PART = 2**17  # pixels, which stay in the cache of a processor
POINTING: dict[str, dict[str, Any]] = {
    "thesis": {"ties": "first", "tolerance": 0.0},
    "saliencysense": {"ties": "any", "tolerance": 0.0},
    "torchray": {"ties": "first", "tolerance": 15.0},
}
F1: dict[str, dict[str, Any]] = {
    "thesis": {"per_box": False, "upstream": False},
    "casme": {"per_box": True, "upstream": True},
}


class PointingGame(RegionMetric):
    """Percentage of the maps whose highest pixel lies on the object (1).

    >>> S = torch.eye(8)[None]
    >>> PointingGame().measure(saliency=S, mask=S > 0.5).tolist()
    [100.0]

    Args:
        preset: whose conventions are followed where the other arguments say nothing.
        ties: which of several highest pixels counts: the "first", row by row; "any" of them; or the "fraction" of them
            that lies on the object.
        tolerance: pixels; a miss by less than them is a hit.
    """

    higher_is_better = True
    formula = "1[argmax S in U]"
    preferred = "mask"

    def __init__(
        self,
        preset: Literal["thesis", "saliencysense", "torchray"] = "thesis",
        ties: Literal["first", "any", "fraction"] | None = None,
        tolerance: float | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = resolve(POINTING, preset, ties=ties, tolerance=tolerance)
        one_of("ties", chosen["ties"], "first", "any", "fraction")
        self.ties, self.tolerance = chosen["ties"], float(chosen["tolerance"])
        if self.tolerance < 0:
            raise ValueError(f"expected a tolerance of at least 0 pixels, got {self.tolerance:g}.")
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "ties": self.ties, "tolerance": self.tolerance}

    def values(self, scored: ScoredBatch) -> Tensor:
        S, U = scored.saliency.flatten(1), pixels_of(scored, self.region)
        known = size_of(scored, self.region) > 0
        if self.tolerance:
            U = dilated(U.view_as(maps(scored)), self.tolerance)
        U = U.flatten(1)
        if self.ties == "first":
            hit = U.gather(1, S.argmax(1, keepdim=True))[:, 0].to(wide(S))
        else:
            top = S.amax(1, keepdim=True) == S
            hits = (top & U).sum(1).to(wide(S))
            hit = (hits > 0).to(hits) if self.ties == "any" else hits / top.sum(1)
        return (100 * hit).masked_fill(~known, torch.nan)  # (1)


def dilated(U: Tensor, reach: float) -> Tensor:
    """Return pixels (B, H, W) whose distance to U is less than `reach`."""
    n = math.ceil(reach) - 1
    t = torch.arange(-n, n + 1, device=U.device)
    disc = (t[:, None] ** 2 + t**2 < reach**2).float()[None, None]
    return F.conv2d(U[:, None].float(), disc, padding=n)[:, 0] > 0.5


class EnergyPointingGame(RegionMetric):
    """Percentage of the map that lies on the object (2); on a planted cue with `region="shortcut_mask"`.

    >>> S = torch.ones(1, 4, 4)
    >>> EnergyPointingGame().measure(saliency=S, boxes=torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])).tolist()
    [25.0]
    """

    higher_is_better = True
    formula = "sum over U of S / sum of S"
    preferred = "mask"

    def values(self, scored: ScoredBatch) -> Tensor:
        within, total, size = sums(scored, self.region)
        return (100 * ratio_or_zero(within, total)).masked_fill(size == 0, torch.nan)  # (2)


class PixelF1(RegionMetric):
    """F1 score of the map, taken without a threshold, and the pixels of the object, in percent (3).

    >>> S = torch.eye(8)[None]
    >>> PixelF1().measure(saliency=S, mask=S > 0.5).tolist()
    [100.0]

    Args:
        preset: whose conventions are followed where the other arguments say nothing.
        per_box: the best of the boxes alone instead of all pixels of the object.
        upstream: as published: boxes that leave the image count with their whole area. Matters with `per_box` only.
    """

    higher_is_better = True
    formula = "2 P R / (P + R), P = sum over U of S / sum of S, R = sum over U of S / |U|"
    preferred = "mask"

    def __init__(
        self,
        preset: Literal["thesis", "casme"] = "thesis",
        per_box: bool | None = None,
        upstream: bool | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = resolve(F1, preset, per_box=per_box, upstream=upstream)
        self.per_box, self.upstream = chosen["per_box"], chosen["per_box"] and chosen["upstream"]
        self.preferred = "boxes" if self.per_box else "mask"
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "per_box": self.per_box, "upstream": self.upstream}

    def values(self, scored: ScoredBatch) -> Tensor:
        if self.per_box:
            return self._best(scored)
        within, total, size = sums(scored, self.region)
        return (100 * ratio_or_zero(2 * within, total + size)).masked_fill(
            size == 0, torch.nan
        )  # (3), with P and R put in

    def _best(self, scored: ScoredBatch) -> Tensor:
        S, B = maps(scored), boxes(scored, self.region)
        size = area(boxes(scored, self.region, clip=False)).to(wide(S)) if self.upstream else area(B).to(wide(S))
        known = ~B.isnan().any(2)
        within, total = sums_in_boxes(S, B), S.sum((1, 2), dtype=wide(S))[:, None]
        P, R = within / (total + EPS), within / (size + EPS)
        highest = (2 * P * R / (P + R + EPS)).masked_fill(~known, -1).amax(1)
        return (100 * highest).masked_fill(~known.any(1), torch.nan)


def sums(scored: ScoredBatch, region: Region) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of each map over the region and over all, and the number of pixels of the region: (B,) each."""
    S = full(scored.saliency).flatten(1)
    total = scored.once("sum", lambda: S.sum(1).to(wide(S)))  # torch sums pairwise: precise enough within a map
    within = sum_over(S, pixels_of(scored, region)).to(total)
    return within.minimum(total), total, size_of(scored, region).to(total)  # no more than all, whatever rounding says


def size_of(scored: ScoredBatch, region: Region) -> Tensor:
    """Return the number of pixels of each region, (B,)."""
    U = pixels_of(scored, region)
    one = full(scored.saliency[:0]).new_ones(())
    return scored.once_clean(("size", region), lambda: sum_over(one.expand(U.flatten(1).shape), U))


def sum_over(S: Tensor, U: Tensor) -> Tensor:
    """Sum rows S (B, N) over the pixels U (B, H, W), (B,); part by part, for a product of all is slow to write."""
    part = max(1, PART // max(1, S.shape[1]))
    buffer = S.new_empty(part, S.shape[1])
    parts = zip(S.split(part), U.flatten(1).split(part))
    return torch.cat([buffer[: len(s)].copy_(u).mul_(s).sum(1) for s, u in parts])


def sums_in_boxes(saliency: Tensor, boxes: Tensor) -> Tensor:
    """Sum each map over each of its boxes (B, n, 4), (B, n), by sums from the upper left corner."""
    H, W = saliency.shape[1:]
    upto = F.pad(saliency.to(wide(saliency)).cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)
    x1, y1, x2, y2 = (boxes.nan_to_num(0) - 0.5).ceil().long().unbind(2)  # pixels whose middles lie in

    def at(y: Tensor, x: Tensor) -> Tensor:
        return upto.gather(1, y.clamp(0, H) * (W + 1) + x.clamp(0, W))

    return at(y2, x2) - at(y1, x2) - at(y2, x1) + at(y1, x1)
