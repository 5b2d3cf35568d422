"""Max-sensitivity: how much a map changes with the image. Yeh et al., NeurIPS 2019, https://arxiv.org/abs/1901.09392

    MS = max over j of |S(x + e[j]) - S(x)| / |S(x)|,  e[j] ~ U(-r, r)    (1)

S: map of an image for one class. |.|: Euclidean norm; a map of norm 0 is divided by 1.
"""

from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution.core.base import Attribution

from .core.base import Fact, RescoringMetric, again_by
from .core.rescoring import ScoredBatch, wide


class MaxSensitivity(RescoringMetric):
    """Largest relative change of the map under small random changes of the image (1).

    >>> from interpretable_training.attribution import GradCAM
    >>> metric = MaxSensitivity(GradCAM(), n=2)
    >>> metric.measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        attribution: the method that made the maps, to explain again; `evaluate` knows it.
        radius: r, in units of the normalized image.
        n: how many changed images are explained.
        raw: compare maps as the method makes them instead of those in [0, 1].
        seed: of the changes, which are the same for all images.
    """

    higher_is_better = False
    formula = "max over j of |S(x + e[j]) - S(x)| / |S(x)|, e[j] ~ U(-r, r)"
    unit = "ratio"
    bounds = (0.0, torch.inf)

    def __init__(
        self,
        attribution: Attribution | None = None,
        radius: float = 0.2,
        n: int = 10,
        raw: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if radius < 0 or n < 1:
            raise ValueError(f"expected radius >= 0 and n >= 1, got radius={radius}, n={n}.")
        self.attribution, self.radius, self.n, self.raw, self.seed = attribution, radius, n, raw, seed
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {
            "radius": self.radius,
            "n": self.n,
            "maps": "raw" if self.raw else "in [0, 1]",
            "seed": self.seed,
            "explained_again_by": again_by(self.attribution),
        }

    def values(self, scored: ScoredBatch) -> Tensor:
        x = scored.images
        S = scored.explain_again(x, raw=True) if self.raw else scored.saliency
        S = S.to(wide(x)).flatten(1)
        generator = torch.Generator().manual_seed(self.seed)
        largest = S.new_zeros(len(S))
        for _ in range(self.n):
            e = self.radius * (2 * torch.rand(x.shape[1:], generator=generator) - 1)
            change = scored.explain_again(x + e.to(x), self.raw).to(S).flatten(1) - S
            largest = torch.maximum(largest, change.norm(dim=1))  # NaN stays NaN
        norm = S.norm(dim=1)
        return largest / norm.masked_fill(norm == 0, 1)  # (1)
