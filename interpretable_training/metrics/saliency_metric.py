"""Size of the part of the image that suffices for the class. Dabkowski and Gal, NeurIPS 2017,
https://arxiv.org/abs/1705.07857

    SM = log(max(0.05, |B| / (H W))) - log p    (1)

B: box around the largest component of {q: S[q] > mean S}. p: probability of the class for the part of the image inside
B, enlarged to H x W. No annotation is needed: the box is the map's own.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.map_operations import one_of

from .core.base import Fact, RescoringMetric, resolve
from .core.regions import area
from .core.rescoring import Kind, ScoredBatch, kind_index, only_images, wide
from .localization import PRESETS, Boxing, Preset

SMALLEST = 0.05  # share of the image; smaller boxes are no better
LEAST = 1e-12  # probability


class SaliencyMetric(RescoringMetric):
    """Area of the map's box against the probability of what is inside (1), in nats.

    >>> SaliencyMetric().measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        preset: whose conventions are followed where `upstream` says nothing.
        p_on: whether p is of the "crop" or, as the printed formula can be read, of the whole "image".
        connectivity: whether pixels touch at their sides (4) or also at their corners (8).
        upstream: boxes as in the published code, which end one row and one column too early: one without pixels shows
            nothing, which is the mean color.
        score: the score: "prob" of a softmax or "sigmoid" for several labels.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    higher_is_better = False
    formula = "log(max(0.05, |B| / (H W))) - log p(x inside B)"
    unit = "nats"
    bounds = (-3.0, 27.64)

    def __init__(
        self,
        preset: Preset = "thesis",
        p_on: Literal["crop", "image"] = "crop",
        connectivity: int = 4,
        upstream: bool | None = None,
        score: Literal["prob", "sigmoid"] = "prob",
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("p_on", p_on, "crop", "image")
        one_of("score", score, "prob", "sigmoid")
        self.p_on, self.chunk_size = p_on, chunk_size
        self.score: Kind = score
        self.boxing = Boxing(connectivity, resolve(PRESETS, preset, upstream=upstream)["upstream"])
        if p_on == "image":
            self.formula = self.formula.replace("p(x inside B)", "p(x)")
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        box = {name: fact for name, fact in self.boxing.facts().items() if name != "iou_threshold"}
        return {"score": self.score, "p_on": self.p_on, **box}

    def values(self, scored: ScoredBatch) -> Tensor:
        x, box = only_images(scored.images), self.boxing.box(scored)
        if self.p_on == "crop":
            rows = torch.arange(len(x), device=x.device)
            key = ("crop", self.boxing.connectivity, self.boxing.upstream)
            scores = scored.once(key, lambda: scored.rescore(lambda part: crops(x[part], box[part]), rows))
        else:
            scores = scored.clean_scores()
        p = scores[:, kind_index(self.score)]
        size = area(box).to(wide(box)) / x[0, 0].numel()
        return size.clamp(min=SMALLEST).log() - p.clamp(min=LEAST).log()  # (1); NaN stays


def crops(images: Tensor, boxes: Tensor) -> Tensor:
    """Return the parts of images (B, C, H, W) inside boxes (B, 4), enlarged to H x W; zero for boxes without pixels."""
    cropped = torch.zeros_like(images)
    for i, (x1, y1, x2, y2) in enumerate(boxes.long().tolist()):
        if x2 > x1 and y2 > y1:
            part = images[i : i + 1, :, y1:y2, x1:x2]
            cropped[i] = F.interpolate(part, images.shape[2:], mode="bicubic", align_corners=False)[0]
    return cropped
