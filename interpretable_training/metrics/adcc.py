"""Coherency, complexity, and their harmonic mean with the drop. Poppi et al., CVPR-W 2021, https://arxiv.org/abs/2104.10252

    Coherency  = (1 + corr(S(mask(x, S)), S(x))) / 2                              (1)
    Complexity = sum over pixels of S / (H W)                                     (2)
    ADCC       = 3 / (1 / Coherency + 1 / (1 - Complexity) + 1 / (1 - Drop))      (3)
    Drop       = relu(p(x) - p(mask(x, S))) / p(x)                                (4)
    ARCC       = 3 / (1 / Coherency + 1 / (1 - Complexity) + 1 / min(max(2 ROAD, 0), 1))    (5)

(5): Domeniconi et al., 2026, https://arxiv.org/abs/2605.14641. ROAD: see `road`, here from -1/2 to 1/2.
S(x): the map of x. corr: Pearson correlation over pixels. p: probability of the class. (3) and (5) are
0 if a term is not above 0. Constant maps have no correlation: two equal ones count as 1, anything else as 0.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.attribution.core.map_operations import degenerate, one_of
from interpretable_training.attribution.core.targets import Target

from . import functional
from .confidence import ConfidenceMetric
from .core.base import Fact, ImageMetric, RescoringMetric, again_by, as_tuple
from .core.masking import Masking, Space
from .core.rescoring import ScoredBatch
from .core.similarity import pearson
from .road import Removal


class Complexity(ImageMetric):
    """Share of the image that the map shows, from 0 to 1 (2).

    >>> metric = Complexity()
    >>> metric.update(torch.full((1, 4, 4), 0.25))
    >>> metric.compute()
    tensor(0.2500)
    """

    higher_is_better = False
    formula = "mean over pixels of S"
    unit = "fraction"
    bounds = (0.0, 1.0)

    def update(self, saliency: Tensor | None = None) -> None:
        """Add maps (B, H, W) in [0, 1]."""
        self.collect(saliency=saliency)

    def values(self, scored: ScoredBatch) -> Tensor:
        return functional.complexity(scored.saliency)  # (2)


def coherency(scored: ScoredBatch, masking: Masking) -> Tensor:
    """Return corr of (1), (B,)."""
    S = scored.saliency
    again = scored.known.get("saliency_masked")
    if again is None:
        again = scored.once(
            ("again", *masking.key), lambda: scored.explain_again(masking(scored.images, masking.mask_of(S)))
        )
    if again.shape != S.shape:
        raise ValueError(f"expected saliency_masked {tuple(S.shape)} as saliency, got {tuple(again.shape)}.")
    rho = pearson(again, S)
    equal = (again.flatten(1) == S.flatten(1)).all(1)
    constant = degenerate(again) | degenerate(S)
    rho = torch.where(constant, equal.to(rho), rho)
    return rho.masked_fill(again.flatten(1).isnan().any(1) | S.flatten(1).isnan().any(1), torch.nan)


class Coherency(ImageMetric):
    """Whether the map stays when the image is seen through it, from 0 to 1 (1).

    >>> from interpretable_training.attribution import GradCAM
    >>> metric = Coherency(GradCAM())
    >>> metric.measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        attribution: the method that made the maps, to explain again; `evaluate` knows it.
        rescale: from the correlation's [-1, 1] to [0, 1].
        space: whether what the map hides is black ("pixel") or the mean color ("normalized", as the authors do).
        mean: the normalization's, without which black cannot be told; with `std`.
        std: see `mean`.
    """

    higher_is_better = True
    unit = "fraction"

    def __init__(
        self,
        attribution: Attribution | None = None,
        rescale: bool = True,
        space: Space = "normalized",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.attribution, self.rescale = attribution, rescale
        self.masking = Masking(space, as_tuple(mean), as_tuple(std))
        self.formula = "(1 + corr(S(mask(x, S)), S(x))) / 2" if rescale else "corr(S(mask(x, S)), S(x))"
        self.bounds = (0.0, 1.0) if rescale else (-1.0, 1.0)
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {**self.masking.facts(), "explained_again_by": again_by(self.attribution)}

    def update(
        self,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Target = None,
        saliency_masked: Tensor | None = None,
    ) -> None:
        """Add a batch; `saliency_masked` are the maps of the masked images, where the caller has them."""
        self.collect(model=model, images=images, saliency=saliency, target=target, saliency_masked=saliency_masked)

    def values(self, scored: ScoredBatch) -> Tensor:
        rho = coherency(scored, self.masking)
        return (rho + 1) / 2 if self.rescale else rho  # (1)


class ADCC(ConfidenceMetric):
    """Harmonic mean of coherency, 1 - complexity and 1 - drop, from 0 to 1 (3).

    >>> from interpretable_training.attribution import GradCAM
    >>> ADCC(GradCAM()).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        attribution: the method that made the maps, to explain again; `evaluate` knows it.
        average: the mean over images of (3) ("images"), or (3) of the means over images ("dataset").
    """

    higher_is_better = True
    formula = "3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))"
    unit = "fraction"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        attribution: Attribution | None = None,
        average: Literal["images", "dataset"] = "images",
        preset: Literal["thesis", "adcc"] = "adcc",
        **kwargs: Any,
    ) -> None:
        one_of("average", average, "images", "dataset")
        one_of("preset", preset, "thesis", "adcc")
        self.attribution, self.average = attribution, average
        self.columns = 1 if average == "images" else 3
        super().__init__(preset, **kwargs)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "average": self.average, "explained_again_by": again_by(self.attribution)}

    def update(  # type: ignore[override]
        self,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Target = None,
        prob: Tensor | None = None,
        prob_masked: Tensor | None = None,
        saliency_masked: Tensor | None = None,
    ) -> None:
        """Add a batch; scores (B,) and the maps of the masked images may be given instead of the model."""
        self.collect(
            model=model,
            images=images,
            saliency=saliency,
            target=target,
            prob=prob,
            prob_masked=prob_masked,
            saliency_masked=saliency_masked,
        )

    def values(self, scored: ScoredBatch) -> Tensor:
        p, o = self.scores(scored)
        drop = functional.ratio_or_zero((p - o).relu(), p)  # (4)
        rho = coherency(scored, self.masking)
        parts = torch.stack([(rho + 1) / 2, functional.complexity(scored.saliency), drop], 1)
        return self.harmonic(parts) if self.average == "images" else parts

    def aggregate(self, means: Tensor) -> Tensor:
        return super().aggregate(means) if self.average == "images" else self.harmonic(means)

    def harmonic(self, parts: Tensor) -> Tensor:
        """Return (3) of coherency, complexity and drop (..., 3)."""
        return functional.adcc(*parts.unbind(-1))  # (3)


class ARCC(RescoringMetric):
    """Harmonic mean of coherency, 1 - complexity and twice ROAD, from 0 to 1 (5).

    >>> from interpretable_training.attribution import GradCAM
    >>> metric = ARCC(GradCAM(), percentages=(50,))
    >>> metric.measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        attribution: the method that made the maps, to explain again; `evaluate` knows it.
        percentages: see `ROAD`.
        score: see `ROAD`.
        noise: see `ROAD`.
        seed: see `ROAD`.
        space: see `Coherency`.
        mean: see `Coherency`.
        std: see `Coherency`.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    higher_is_better = True
    formula = "3 / (1 / coherency + 1 / (1 - complexity) + 1 / min(max(2 road, 0), 1))"
    unit = "fraction"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        attribution: Attribution | None = None,
        percentages: Sequence[float] = (20, 40, 60, 80),
        score: Literal["prob", "accuracy", "sigmoid"] = "prob",
        noise: float = 0.01,
        seed: int = 0,
        space: Space = "normalized",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("score", score, "prob", "accuracy", "sigmoid")
        self.attribution, self.score, self.chunk_size = attribution, score, chunk_size
        self.removal = Removal(tuple(percentages), noise, seed)
        self.masking = Masking(space, as_tuple(mean), as_tuple(std))
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        again = {"explained_again_by": again_by(self.attribution)}
        return {"score": self.score, **self.removal.facts(), **self.masking.facts(), **again}

    def values(self, scored: ScoredBatch) -> Tensor:
        kept = (coherency(scored, self.masking) + 1) / 2
        road = (2 * self.removal.value(scored, self.score)).clamp(0, 1)
        return functional.adcc(kept, functional.complexity(scored.saliency), 1 - road)  # (5)
