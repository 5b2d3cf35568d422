"""Localization of the object by a box made of the map.

    B[p] = box around the largest component of {p: S[p] > mean S}                       (1)
    LE   = 100 (1 - max over B of v(B, B[p])),  v = 1[IoU > 0.5], or the IoU itself      (2)
    OM   = 100 (1 - max over B of v(B, B[p]) 1[predicted class = c])                     (3)
    ELE  = (2) for the box around the fewest highest pixels that hold 95 % of the sum of S    (4)

B: boxes of the object. (1)-(3): as in Zhang et al., Opti-CAM, CVIU 2024, https://arxiv.org/abs/2301.07002, after the
code of Zolna et al., https://arxiv.org/abs/1805.08249. (4): Zhou et al., CVPR 2016 and others that fix the energy.
An empty set has the whole image as its box.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.components import boxes_around, largest_boxes
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.options import check_fields
from interpretable_training.attribution.core.targets import Target

from .core.base import Fact, ImageMetric, resolve
from .core.regions import REGIONS, Region, area, boxes, iou, maps, regions_for
from .core.rescoring import ScoredBatch, kind_index, wide

Preset = Literal["thesis", "casme"]
PRESETS: dict[str, dict[str, Any]] = {"thesis": {"upstream": False}, "casme": {"upstream": True}}


class RegionMetric(ImageMetric):
    """Compares a map with where the object is; images without an annotated region are left out and counted.

    Args:
        region: which annotation tells where the object is: the "mask", the "boxes" or the "shortcut_mask", a planted
            cue; "auto" takes what suits the metric, mask before boxes where pixels count and else boxes before mask.
    """

    left_out = "which have no annotated region or whose maps are not numbers"
    why_no_number = "have no annotated region, or no map of numbers, and are"
    preferred = "boxes"  # of "auto"

    def __init__(self, region: Region = "auto", **kwargs: Any) -> None:
        one_of("region", region, *REGIONS)
        self.region: Region = region
        super().__init__(**kwargs)

    @property
    def wants_high(self) -> bool | None:
        return bool(self.higher_is_better) != (self.region == "shortcut_mask")  # a cue is no place to look at

    def options(self) -> dict[str, Fact]:
        other = {"boxes": "mask", "mask": "boxes"}[self.preferred]
        return {"region": f"{self.preferred}, else {other}" if self.region == "auto" else self.region}

    def update(
        self,
        saliency: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Any = None,
        shortcut_mask: Tensor | None = None,
    ) -> None:
        """Add a batch: maps (B, H, W) in [0, 1] and where the objects are.

        Masks are (B, H, W); boxes (B, n, 4), padded with NaN, or a list of (n, 4), in pixels: x1, y1, and x2, y2 just
        outside.
        """
        self.collect(saliency=saliency, mask=mask, boxes=boxes, shortcut_mask=shortcut_mask)

    def rows(self, scored: ScoredBatch) -> Tensor:
        with regions_for(type(self).__name__, scored.annotations):
            return super().rows(scored)


@dataclass(frozen=True)
class Boxing:
    """Turn a map into a box (1) and compare it with the boxes of the object.

    Args:
        connectivity: whether pixels touch at their sides (4) or also at their corners (8).
        upstream: as published: the box ends one row and one column too early, and the boxes of objects that leave the
            image count with their whole area.
        iou: whether v is the IoU itself.
        threshold: which it has to exceed else.
    """

    connectivity: int = 4
    upstream: bool = False
    iou: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("connectivity", self.connectivity, 4, 8)

    def box(self, scored: ScoredBatch) -> Tensor:
        """Return B[p] (B, 4)."""

        def compute() -> Tensor:
            S = maps(scored)
            largest = largest_boxes(S.mean((1, 2), keepdim=True, dtype=wide(S)).to(S) < S, self.connectivity)
            return or_all(largest - largest.new_tensor([0, 0, 1, 1]) if self.upstream else largest, S)

        return scored.once(("box", self.connectivity, self.upstream), compute)

    def largest_value(self, scored: ScoredBatch, box: Tensor, region: Region) -> Tensor:
        """Return the largest v (B,) of a box (B, 4) and those of the object; NaN without one."""
        B = boxes(scored, region)
        overlap = best_iou(box, B, area(boxes(scored, region, clip=False)) if self.upstream else None)
        v = overlap if self.iou else (overlap > self.threshold).to(overlap)
        return v.masked_fill(overlap.isnan(), torch.nan)

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport."""
        return {
            "box": f"around the largest component of S > mean S, {self.connectivity} neighbors",
            "upstream": self.upstream,
            "iou_threshold": None if self.iou else self.threshold,
        }


def best_iou(box: Tensor, others: Tensor, areas: Tensor | None = None, border: float = 0.0) -> Tensor:
    """Return the largest IoU (B,) of a box (B, 4) with others (B, n, 4); NaN where there are none."""
    known = ~others.isnan().any(2)
    box, others = box.to(wide(box)), others.to(wide(others))  # an overlap of 7/10 is not below 0.7
    overlap = iou(box, others, areas, border).masked_fill(~known, -1).amax(1)
    return overlap.masked_fill(~known.any(1), torch.nan)


def or_all(boxes: Tensor, saliency: Tensor) -> Tensor:
    """Return boxes, and the whole image where there is none."""
    H, W = saliency.shape[1:]
    return torch.where(boxes.isnan(), boxes.new_tensor([0, 0, W, H]), boxes)


class LocalizationError(RegionMetric):
    """Percentage of the maps whose box does not overlap the object's box by more than half (2).

    >>> S = torch.zeros(1, 8, 8)
    >>> S[:, 2:6, 2:6] = 1
    >>> LocalizationError().measure(saliency=S, boxes=torch.tensor([[[2.0, 2.0, 6.0, 6.0]]])).tolist()
    [0.0]

    Args:
        preset: whose conventions are followed where `upstream` says nothing.
        iou: take one minus the IoU itself, as the formula is printed, instead of a threshold.
        threshold: which the IoU has to exceed.
        connectivity: whether pixels touch at their sides (4) or also at their corners (8).
        upstream: boxes as in the published code; see `Boxing`.
    """

    higher_is_better = False
    formula = "1 - max over B of v(B, box of S)"

    def __init__(
        self,
        preset: Preset = "thesis",
        iou: bool = False,
        threshold: float = 0.5,
        connectivity: int = 4,
        upstream: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.boxing = Boxing(connectivity, resolve(PRESETS, preset, upstream=upstream)["upstream"], iou, threshold)
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), **self.boxing.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        return 100 * (1 - self.boxing.largest_value(scored, self.boxing.box(scored), self.region))  # (2)


class OfficialMetric(RegionMetric):
    """Percentage of the images that are classified wrongly or whose map fails as in `LocalizationError` (3).

    Of the predicted class it is the same as `LocalizationError`: explain the labels (`target="label"`).

    >>> S = torch.zeros(1, 8, 8)
    >>> S[:, 2:6, 2:6] = 1
    >>> OfficialMetric().measure(saliency=S, boxes=torch.tensor([[[2.0, 2.0, 6.0, 6.0]]]), correct=[False]).tolist()
    [100.0]

    Args:
        preset: whose conventions are followed where `upstream` says nothing.
        iou: take one minus the IoU itself, as the formula is printed, instead of a threshold.
        threshold: which the IoU has to exceed.
        connectivity: whether pixels touch at their sides (4) or also at their corners (8).
        upstream: boxes as in the published code; see `Boxing`.
    """

    needs_classes = True
    higher_is_better = False
    formula = "1 - max over B of v(B, box of S) 1[predicted class = c]"

    def __init__(
        self,
        preset: Preset = "thesis",
        iou: bool = False,
        threshold: float = 0.5,
        connectivity: int = 4,
        upstream: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.boxing = Boxing(connectivity, resolve(PRESETS, preset, upstream=upstream)["upstream"], iou, threshold)
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), **self.boxing.facts()}

    def update(
        self,
        saliency: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Any = None,
        shortcut_mask: Tensor | None = None,
        correct: Tensor | None = None,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        target: Target = None,
    ) -> None:
        """Add a batch as `RegionMetric.update`, with `correct` (B,), or the model, images and classes."""
        self.collect(
            saliency=saliency,
            mask=mask,
            boxes=boxes,
            shortcut_mask=shortcut_mask,
            correct=correct,
            model=model,
            images=images,
            target=target,
        )

    def values(self, scored: ScoredBatch) -> Tensor:
        v = self.boxing.largest_value(scored, self.boxing.box(scored), self.region)
        if "correct" in scored.known:
            correct = torch.as_tensor(scored.known["correct"]).to(v)
        else:
            correct = scored.clean_scores()[:, kind_index("accuracy")].to(v)
        return 100 * (1 - v * correct)  # (3)


class EnergyLocalizationError(RegionMetric):
    """Percentage of the maps the box around whose energy does not overlap the object's by more than half (4).

    Pixels as high as the last one that is needed belong to the set, so that it does not depend on their order.

    >>> S = torch.zeros(1, 8, 8)
    >>> S[:, 2:6, 2:6] = 1
    >>> EnergyLocalizationError().measure(saliency=S, boxes=torch.tensor([[[2.0, 2.0, 6.0, 6.0]]])).tolist()
    [0.0]

    Args:
        energy: share of the sum of S that the set holds.
        iou: take one minus the IoU itself instead of a threshold.
        threshold: which the IoU has to exceed.
    """

    higher_is_better = False
    formula = "1 - max over B of v(B, box around the fewest highest pixels with 95 % of the energy)"

    def __init__(self, energy: float = 0.95, iou: bool = False, threshold: float = 0.5, **kwargs: Any) -> None:
        if not 0 < energy <= 1:
            raise ValueError(f"expected energy as a share above 0 and up to 1, got {energy}.")
        self.energy, self.boxing = energy, Boxing(iou=iou, threshold=threshold)
        self.formula = self.formula.replace("95", f"{100 * energy:g}")
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        threshold = self.boxing.facts()["iou_threshold"]
        return {**super().options(), "energy": self.energy, "iou_threshold": threshold}

    def values(self, scored: ScoredBatch) -> Tensor:
        S = maps(scored)
        box = or_all(boxes_around(highest(S, self.energy)), S)
        return 100 * (1 - self.boxing.largest_value(scored, box, self.region))  # (4)


def highest(saliency: Tensor, energy: float) -> Tensor:
    """Return the fewest highest pixels (B, H, W) that hold a share of the sum, with ties; none of zero maps."""
    ordered = saliency.flatten(1).sort(1, descending=True).values
    sums = ordered.cumsum(1, dtype=wide(saliency))
    needed = energy * sums[:, -1:]
    last = (sums < needed).sum(1, keepdim=True).clamp(max=ordered.shape[1] - 1)
    lowest = ordered.gather(1, last)[:, :, None]
    return (saliency >= lowest) & (sums[:, -1] > 0)[:, None, None]
