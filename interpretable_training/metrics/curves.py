"""Insertion and deletion: the class probability while pixels appear or go, the most salient first.

    deletion:   z[0] = x,  z[j] = x with the first j g pixels of pi replaced by r(x)      (1)
    insertion:  z[0] = r(x),  z[j] = r(x) with the first j g pixels of pi taken from x    (2)
    AUC = (sum over j of s[j] - s[0] / 2 - s[n] / 2) / n,  s[j] = p(z[j]), j = 0..n       (3)
    InsertionDeletion = mean of (insertion - deletion)                                    (4)

Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421. pi: pixels by falling saliency. g: pixels per step.
r: what pixels are replaced by. p: probability of the class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.options import check_fields

from .core.base import Fact, ImageMetric, RescoringMetric, as_tuple, resolve
from .core.perturbation import Replacement, Substrate, Ties, rank_pixels
from .core.rescoring import SCORES, Kind, ScoredBatch, kind_index

Preset = Literal["rise", "ca_stream", "polycam", "tgrad", "torchcam"]
Auc = Literal["trapezoid", "mean"]
Axis = Literal["steps", "fraction"]
# The published codes sort ascending and turn the order around, so that equal pixels go from the last to the first.
_RISE = {"kernel": 11, "steps": None, "rows": 1, "auc": "trapezoid", "ties": "reverse", "x_axis": "steps"}
INSERTION: dict[str, dict[str, Any]] = {
    "rise": {**_RISE, "substrate": "blur"},
    "ca_stream": {**_RISE, "substrate": "blur", "kernel": 5, "rows": 8},
    "polycam": {**_RISE, "substrate": "gaussian", "auc": "mean"},
    "tgrad": {**_RISE, "substrate": "gaussian", "steps": 224, "ties": "index"},
    "torchcam": {**_RISE, "substrate": "mean", "steps": 20, "ties": "index", "x_axis": "fraction"},
}
DELETION: dict[str, dict[str, Any]] = {
    **INSERTION,
    "rise": {**_RISE, "substrate": "mean"},
    "ca_stream": {**INSERTION["ca_stream"], "substrate": "mean"},
}


@dataclass(frozen=True)
class Curve:
    """Settings of a curve (1) or (2) and of its area (3).

    Args:
        kind: "insertion" or "deletion".
        replacement: r.
        steps: n; by default as many as there are steps of `rows`.
        rows: of the image that make a step, where `steps` says nothing.
        auc: the "trapezoid" (3), or the "mean" of s[1]..s[n].
        ties: order of equal pixels.
        x_axis: whether steps count alike, also a shorter last one, or by the "fraction" of pixels they change.
        seed: of random ties.
    """

    kind: Literal["insertion", "deletion"]
    replacement: Replacement
    steps: int | None = None
    rows: int = 1
    auc: Auc = "trapezoid"
    ties: Ties = "reverse"
    x_axis: Axis = "steps"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def with_normalization(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> "Curve":
        """Return the same with the mean and std of the data, where none were given."""
        return replace(self, replacement=self.replacement.with_normalization(mean, std))

    def counts(self, spatial: Sequence[int]) -> Tensor:
        """Return how many pixels have changed after each step, (n + 1,)."""
        pixels = torch.Size(spatial).numel()
        row = spatial[-1] if len(spatial) > 1 else 1  # of a signal, one by one
        g = self.rows * row if self.steps is None else -(-pixels // self.steps)
        return torch.cat([torch.arange(0, pixels, g), torch.tensor([pixels])])

    def scores(self, scored: ScoredBatch, score: Kind) -> Tensor:
        """Return s of each image, (B, n + 1)."""
        area_free = replace(self, auc="trapezoid", x_axis="steps")  # these change nothing before (3)
        return scored.once(area_free, lambda: self._scores(scored))[..., kind_index(score)]

    def _scores(self, scored: ScoredBatch) -> Tensor:
        x, S = scored.images, scored.saliency
        counts = self.counts(x.shape[2:]).to(x.device)
        inner = counts[1:-1]
        r = self.replacement(x)
        rank = rank_pixels(S, self.ties, self.seed)
        before, after = (x, r) if self.kind == "deletion" else (r, x)
        image = torch.arange(len(x), device=x.device).repeat_interleave(len(inner))
        step = inner.repeat(len(x))

        def make(rows: slice) -> Tensor:
            i, changed = image[rows], step[rows].view(-1, *[1] * S.ndim)
            return torch.where(rank[i][:, None] < changed, after[i], before[i])  # (1), (2)

        s = scored.rescore(make, image).view(len(x), len(inner), len(SCORES))
        clean, blank = scored.clean_scores(), self._blank(scored, r)
        ends = (clean, blank) if self.kind == "deletion" else (blank, clean)
        return torch.cat([ends[0][:, None], s, ends[1][:, None]], 1)

    def _blank(self, scored: ScoredBatch, r: Tensor) -> Tensor:
        """Return scores (B, S) of the substrate alone, which no map changes."""
        rows = torch.arange(len(r), device=r.device)
        return scored.once_clean(self.replacement, lambda: scored.rescore(lambda part: r[part], rows))

    def area(self, s: Tensor, spatial: Sequence[int]) -> Tensor:
        """Return the area under curves (B, n + 1), (B,)."""
        if self.auc == "mean":
            return s[:, 1:].mean(1)
        if self.x_axis == "fraction":
            counts = self.counts(spatial).to(s)
            return torch.trapezoid(s, counts / counts[-1], dim=1)
        return (s.sum(1) - s[:, 0] / 2 - s[:, -1] / 2) / (s.shape[1] - 1)  # (3)

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport, under the name of the curve's kind."""
        return {f"{self.kind}_{key}": value for key, value in self.replacement.facts().items()}


class CurveMetric(ImageMetric):
    """Base of the metrics that are areas under curves.

    Args:
        steps: n, for example 28 or 224; by default one row of the image per step, with "ca_stream" eight.
        preset: whose conventions are followed where the other arguments say nothing.
        substrate: what pixels are replaced by: "mean", "black", "min", "uniform", "blur", "gaussian" or a tensor.
        kernel: side of the kernel of a blurring substrate.
        auc: the "trapezoid" (3), or the "mean" of s[1]..s[n].
        ties: order of equal pixels: "index", "reverse" or "random".
        x_axis: whether "steps" count alike, or by the "fraction" of pixels that they change.
        mean: the normalization's, which the substrate "black" needs; with `std`.
        std: see `mean`.
        score: the score that is followed: "prob" of a softmax, "sigmoid" for several labels, or "logit".
        seed: of random ties and a "uniform" substrate.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    update = RescoringMetric.update

    def __init__(
        self,
        steps: int | None = None,
        preset: Preset = "rise",
        substrate: Substrate | Tensor | None = None,
        kernel: int | None = None,
        auc: Auc | None = None,
        ties: Ties | None = None,
        x_axis: Axis | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        score: Literal["prob", "sigmoid", "logit"] = "prob",
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("score", score, "prob", "sigmoid", "logit")
        self.score: Kind = score
        self.chunk_size = chunk_size
        given = {"steps": steps, "substrate": substrate, "kernel": kernel, "auc": auc, "ties": ties, "x_axis": x_axis}
        self.insertion, self.deletion = (
            self._curve(kind, resolve(presets, preset, **given), mean, std, seed)
            for kind, presets in (("insertion", INSERTION), ("deletion", DELETION))
        )
        super().__init__(**kwargs)

    def _curve(self, kind: Any, chosen: dict[str, Any], mean: Any, std: Any, seed: int) -> Curve:
        r = Replacement(chosen.pop("substrate"), chosen.pop("kernel"), 5.0, as_tuple(mean), as_tuple(std), seed)
        return Curve(kind, r, **chosen, seed=seed)

    def used(self) -> list[Curve]:
        """Return the curves that the metric is made of."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement used().")

    def options(self) -> dict[str, Fact]:
        first = self.used()[0]
        shared: dict[str, Fact] = {
            "score": self.score,
            "steps": first.steps or f"{'one row' if first.rows == 1 else f'{first.rows} rows'} of the image each",
            "auc": first.auc,
            "ties": first.ties if first.ties != "random" else f"random, seed {first.seed}",
            "x_axis": first.x_axis,
        }
        return {**shared, **{key: value for curve in self.used() for key, value in curve.facts().items()}}

    def curves(self, scored: ScoredBatch) -> dict[str, Tensor]:
        """Return s of each image by the kind of its curve, (B, n + 1)."""
        return {curve.kind: curve.scores(scored, self.score) for curve in self.used()}

    def areas(self, scored: ScoredBatch) -> list[Tensor]:
        """Return the area (B,) of each curve."""
        spatial = scored.images.shape[2:]
        return [curve.area(curve.scores(scored, self.score), spatial) for curve in self.used()]


class Insertion(CurveMetric):
    """Area under the class probability while pixels appear, the most salient first (2), (3), in percent.

    >>> Insertion(steps=4).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])
    """

    higher_is_better = True
    formula = "area under p of a blank image while pixels of the image appear, the most salient first"

    def used(self) -> list[Curve]:
        return [self.insertion]

    def values(self, scored: ScoredBatch) -> Tensor:
        return 100 * self.areas(scored)[0]


class Deletion(CurveMetric):
    """Area under the class probability while pixels are removed, the most salient first (1), (3), in percent.

    >>> Deletion(steps=4).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])
    """

    higher_is_better = False
    formula = "area under p of the image while its pixels go, the most salient first"

    def used(self) -> list[Curve]:
        return [self.deletion]

    def values(self, scored: ScoredBatch) -> Tensor:
        return 100 * self.areas(scored)[0]


class InsertionDeletion(CurveMetric):
    """Insertion minus deletion (4), in percent.

    >>> metric = InsertionDeletion(steps=4)
    >>> metric.update(network, images, saliency, target)
    >>> metric.passport()["range"]
    '-100 to 100'
    """

    higher_is_better = True
    formula = "mean of (insertion - deletion)"
    bounds = (-100.0, 100.0)

    def used(self) -> list[Curve]:
        return [self.insertion, self.deletion]

    def values(self, scored: ScoredBatch) -> Tensor:
        insertion, deletion = self.areas(scored)
        return 100 * (insertion - deletion)  # (4)
