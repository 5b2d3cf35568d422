"""Accuracy of the map's box at the best threshold. Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437

    BoxAcc(t, d) = mean over images of max over B of 1[IoU(B, box of {p: S[p] > t}) >= d]    (1)
    BA           = 100 mean over d of max over t of BoxAcc(t, d)                              (2)

B: boxes of the object. t: thresholds, the same for all images. A map that is nowhere above t has no box.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.components import AT_ONCE, find_runs, first_runs, largest_boxes
from interpretable_training.attribution.core.map_operations import one_of

from .core.base import Fact, joined_numbers, resolve
from .core.contours import contour_boxes, largest_contour_boxes
from .core.regions import boxes, maps
from .core.rescoring import ScoredBatch, wide
from .localization import RegionMetric, best_iou

PRESETS: dict[str, dict[str, Any]] = {
    "thesis": {"components": "largest", "connectivity": 4, "deltas": (0.3, 0.5, 0.7), "upstream": False},
    "maxboxacc": {"components": "largest", "connectivity": 8, "deltas": (0.5,), "upstream": True},
    "maxboxaccv2": {"components": "all", "connectivity": 8, "deltas": (0.3, 0.5, 0.7), "upstream": True},
}
LEVELS = 255  # of maps in bytes


class BoxAccuracy(RegionMetric):
    """Percentage of the maps whose box overlaps the object's at the best threshold (2).

    The threshold is the best of all images together, so that the number is no mean of numbers of single images.

    >>> S = torch.zeros(1, 8, 8)
    >>> S[:, 2:6, 2:6] = 1
    >>> BoxAccuracy(steps=10).measure(saliency=S, boxes=torch.tensor([[[2.0, 2.0, 6.0, 6.0]]])).tolist()
    [100.0]

    Args:
        preset: whose conventions are followed where the other arguments say nothing.
        components: whether the box of the "largest" component counts, or that of any ("all").
        connectivity: whether pixels touch at their sides (4) or also at their corners (8); 8 with `upstream`.
        deltas: d, by which boxes have to overlap.
        steps: how many thresholds t there are, from 0 up to but without 1.
        upstream: as published: maps in bytes, with a threshold for each of their values instead of `steps`; boxes
            around contours, so that those of holes count too, and the "largest" is the one that encloses the largest
            area, holes included; and boxes whose sides count one pixel more.
    """

    higher_is_better = True
    formula = "mean over d of max over t of the share of images with max over B of 1[IoU(B, box of S > t) >= d]"

    def __init__(
        self,
        preset: Literal["thesis", "maxboxacc", "maxboxaccv2"] = "thesis",
        components: Literal["largest", "all"] | None = None,
        connectivity: int | None = None,
        deltas: Sequence[float] | None = None,
        steps: int = 100,
        upstream: bool | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = resolve(
            PRESETS, preset, components=components, connectivity=connectivity, deltas=deltas, upstream=upstream
        )
        one_of("components", chosen["components"], "largest", "all")
        if chosen["upstream"] and connectivity is None:
            chosen["connectivity"] = 8
        one_of("connectivity", chosen["connectivity"], *((8,) if chosen["upstream"] else (4, 8)))
        if steps < 1 or not chosen["deltas"] or not all(0 < d <= 1 for d in chosen["deltas"]):
            raise ValueError(
                f"expected at least one step and deltas above 0 and up to 1, got steps={steps}, "
                f"deltas={chosen['deltas']}."
            )
        self.components, self.connectivity = chosen["components"], chosen["connectivity"]
        self.deltas, self.upstream = tuple(map(float, chosen["deltas"])), chosen["upstream"]
        self.steps = LEVELS if self.upstream else steps
        self.columns = len(self.deltas) * self.steps
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {
            **super().options(),
            "components": self.components,
            "connectivity": self.connectivity,
            "deltas": joined_numbers(self.deltas),
            "steps": self.steps,
            "upstream": self.upstream,
        }

    def aggregate(self, means: Tensor) -> Tensor:
        return means.unflatten(-1, (len(self.deltas), self.steps)).amax(-1).mean(-1)  # (2)

    def values(self, scored: ScoredBatch) -> Tensor:
        S, B = maps(scored), boxes(scored, self.region)
        t = torch.arange(self.steps, device=S.device) / self.steps
        if self.upstream:
            S = (S * LEVELS).floor()
            t = (torch.arange(LEVELS, device=S.device) * S.amax((1, 2))[:, None] / LEVELS).floor()  # (B, LEVELS)
        t = t.to(S).expand(len(S), self.steps).flatten()
        step = max(1, AT_ONCE // (S.shape[1] * S.shape[2]))
        rows = torch.arange(len(t), device=S.device).split(step)
        best = torch.cat(
            [self._best(S[part // self.steps] > t[part, None, None], B[part // self.steps]) for part in rows]
        )
        hits = best.view(len(S), 1, self.steps) >= best.new_tensor(self.deltas)[:, None]
        unknown = best.view(len(S), self.steps).isnan().any(1)
        return (100 * hits.to(wide(S)).flatten(1)).masked_fill(unknown[:, None], torch.nan)  # (1)

    def _best(self, M: Tensor, B: Tensor) -> Tensor:
        """Return the largest IoU (N,) of the boxes of masks (N, H, W) with boxes (N, n, 4); NaN without one."""
        if self.components == "largest":
            largest = largest_contour_boxes(M) if self.upstream else largest_boxes(M, self.connectivity)
            return best_iou(self._published(largest, M), B, None, self.border)
        if self.upstream:
            image, every = contour_boxes(M)
        else:
            runs = find_runs(M, self.connectivity)
            first = first_runs(runs)
            image, every = runs.image[first], runs.boxes()[first].float()
        overlaps = best_iou(self._published(every, M), B[image], None, self.border)
        none = torch.where(B.isnan().any(2).all(1), torch.nan, 0.0).to(overlaps)  # of masks without any component
        return none.scatter_reduce(0, image, overlaps, "amax")

    @property
    def border(self) -> float:
        """Return by how much the published boxes are longer than what they hold."""
        return 1.0 if self.upstream else 0.0

    def _published(self, boxes: Tensor, M: Tensor) -> Tensor:
        """Cut sides as published, which end at the last pixel of the image at most."""
        H, W = M.shape[1:]
        return boxes.minimum(boxes.new_tensor([W, H, W - 1, H - 1])) if self.upstream else boxes
