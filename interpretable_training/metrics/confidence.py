"""Change of the class probability when the image is multiplied by its map.

    AD  = 100/N * sum over i of relu(p[i] - o[i]) / p[i]          (1)
    AI  = 100/N * sum over i of 1[o[i] > p[i]]                    (2)
    AG  = 100/N * sum over i of relu(o[i] - p[i]) / (1 - p[i])    (3)
    ADD = 100/N * sum over i of (p[i] - d[i]) / p[i]              (4)

p: probability of the class. o: of the image seen through its map S. d: seen through 1 - S.
(1), (2): Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063. (3): Zhang et al., Opti-CAM, CVIU 2024,
https://arxiv.org/abs/2301.07002. (4): Jung and Oh, LIFT-CAM, ICCV 2021, https://arxiv.org/abs/2102.05228.
0/0 is 0: a probability of 0 cannot drop, one of 1 cannot gain.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.targets import Target

from . import functional
from .core.base import Fact, ImageMetric, as_tuple, resolve
from .core.masking import Masking, Space
from .core.rescoring import Kind, ScoredBatch, kind_index, wide

Preset = Literal["thesis", "ca_stream", "adcc", "polycam", "pytorch_grad_cam", "torchcam"]
PRESETS: dict[str, dict[str, Any]] = {
    "thesis": {"space": "pixel", "score": "prob", "relative": True},  # as Opti-CAM's code does
    "ca_stream": {"space": "pixel", "score": "prob", "relative": True},
    "adcc": {"space": "normalized", "score": "prob", "relative": True},
    "polycam": {"space": "normalized", "score": "prob", "relative": True},
    "pytorch_grad_cam": {"space": "normalized", "score": "prob", "relative": False},
    "torchcam": {"space": "normalized", "score": "logit", "relative": True},
}


class ConfidenceMetric(ImageMetric):
    """Compares the scores of images with those of the images seen through their maps.

    Args:
        preset: whose conventions are followed where the other arguments say nothing.
        space: whether what the map hides is black ("pixel") or the mean color ("normalized").
        mean: the normalization's, without which black cannot be told; with `std`.
        std: see `mean`.
        topk: keep this percentage of the pixels instead of fading by the map.
        score: the score that is compared: "prob" of a softmax, "sigmoid" for several labels, or "logit".
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    def __init__(
        self,
        preset: Preset = "thesis",
        space: Space | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        topk: float | None = None,
        score: Kind | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = resolve(PRESETS, preset, space=space, score=score)
        one_of("score", chosen["score"], "prob", "sigmoid", "logit")
        self.score: Kind = chosen["score"]
        self.masking = Masking(chosen["space"], as_tuple(mean), as_tuple(std), topk)
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {"score": self.score, **self.masking.facts()}

    def update(
        self,
        prob: Tensor | None = None,
        prob_masked: Tensor | None = None,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Target = None,
    ) -> None:
        """Add a batch, of its scores (B,) or of what they are computed from."""
        self.collect(prob=prob, prob_masked=prob_masked, model=model, images=images, saliency=saliency, target=target)

    def scores(self, scored: ScoredBatch, name: str = "prob_masked", inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return p and o, or p and d, (B,), given or computed."""
        return self._clean(scored), self._masked(scored, name, inverse)

    def _clean(self, scored: ScoredBatch) -> Tensor:
        if "prob" in scored.known:
            return _in_full_precision(scored.known["prob"], self.score)
        return scored.clean_scores()[:, kind_index(self.score)]

    def _masked(self, scored: ScoredBatch, name: str, inverse: bool) -> Tensor:
        if name in scored.known:
            return _in_full_precision(scored.known[name], self.score)
        return self.masking.scores(scored, inverse)[:, kind_index(self.score)]


class AverageDrop(ConfidenceMetric):
    """Percentage of the class probability that is lost when only what the map shows stays (1).

    >>> metric = AverageDrop()
    >>> metric.update(prob=torch.tensor([0.8, 0.5]), prob_masked=torch.tensor([0.4, 0.6]))
    >>> metric.compute()
    tensor(25.)

    Args:
        relative: relative to p; else the difference itself, relu(p - o).
    """

    higher_is_better = False
    formula = "mean of relu(p - o) / p"
    logit_bounds = (0.0, math.inf)

    def __init__(self, preset: Preset = "thesis", relative: bool | None = None, **kwargs: Any) -> None:
        self.relative: bool = resolve(PRESETS, preset, relative=relative)["relative"]
        if not self.relative:
            self.formula = "mean of relu(p - o)"
        super().__init__(preset, **kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "relative": self.relative}

    def values(self, scored: ScoredBatch) -> Tensor:
        return functional.average_drop(*self.scores(scored), self.relative)  # (1)


class AverageIncrease(ConfidenceMetric):
    """Percentage of the images whose class becomes more probable when only what the map shows stays (2).

    A map that hides nearly nothing scores well; read it together with another metric.

    >>> metric = AverageIncrease()
    >>> metric.update(prob=torch.tensor([0.8, 0.5]), prob_masked=torch.tensor([0.4, 0.6]))
    >>> metric.compute()
    tensor(50.)

    Args:
        signed: count images whose class becomes less probable as -1 instead of 0.
    """

    higher_is_better = True
    formula = "mean of 1[o > p]"
    logit_bounds = None

    def __init__(self, signed: bool = False, **kwargs: Any) -> None:
        self.signed = signed
        if signed:
            self.formula, self.bounds = "mean of sign(o - p)", (-100.0, 100.0)
        super().__init__(**kwargs)

    def values(self, scored: ScoredBatch) -> Tensor:
        return functional.average_increase(*self.scores(scored), self.signed)  # (2)


class AverageGain(ConfidenceMetric):
    """Percentage gained, of what the class probability could still gain, when only what the map shows stays (3).

    >>> metric = AverageGain()
    >>> metric.update(prob=torch.tensor([0.8, 0.5]), prob_masked=torch.tensor([0.4, 0.6]))
    >>> round(metric.compute().item(), 3)
    10.0
    """

    higher_is_better = True
    formula = "mean of relu(o - p) / (1 - p)"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.score == "logit":
            raise ValueError(
                "expected score='prob' or 'sigmoid' for AverageGain, got 'logit', which has no highest value."
            )

    def values(self, scored: ScoredBatch) -> Tensor:
        return functional.average_gain(*self.scores(scored))  # (3)


class AverageDropInDeletion(ConfidenceMetric):
    """Percentage of the class probability that is lost when what the map shows is taken away (4).

    Not clamped: an image whose class becomes more probable counts as a negative loss.

    >>> metric = AverageDropInDeletion()
    >>> metric.update(prob=torch.tensor([0.8, 0.5]), prob_deleted=torch.tensor([0.4, 0.25]))
    >>> metric.compute()
    tensor(50.)

    Args:
        clamp: count such images as 0.
    """

    higher_is_better = True
    formula = "mean of (p - d) / p"
    bounds = (-torch.inf, 100.0)

    def __init__(self, clamp: bool = False, **kwargs: Any) -> None:
        self.clamp = clamp
        if clamp:
            self.formula, self.bounds = "mean of relu(p - d) / p", (0.0, 100.0)
            self.logit_bounds = (0.0, math.inf)
        super().__init__(**kwargs)

    def update(
        self,
        prob: Tensor | None = None,
        prob_deleted: Tensor | None = None,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Target = None,
    ) -> None:
        self.collect(prob=prob, prob_deleted=prob_deleted, model=model, images=images, saliency=saliency, target=target)

    def values(self, scored: ScoredBatch) -> Tensor:
        p, d = self.scores(scored, "prob_deleted", inverse=True)
        return functional.average_drop_in_deletion(p, d, self.clamp)  # (4)


def _in_full_precision(scores: Tensor, score: Kind) -> Tensor:
    """Return scores (B,) that the caller computed in float64; what is not finite becomes NaN."""
    scores = scores.detach().to(wide(scores))
    scores = scores.masked_fill(~scores.isfinite(), torch.nan)
    return scores if score == "logit" else scores.clamp(0, 1)
