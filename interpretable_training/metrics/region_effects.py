"""Does a map predict what happens when a region is removed?

    e[j] = s(x) - s(x without R[j])                                       (1)
    a[j] = sum over R[j] of S                                             (2)
    Infidelity     = mean over j of (b a[j] - e[j])^2,
                     b = sum over j of a[j] e[j] / sum over j of a[j]^2   (3)
    SingleDeletion = Spearman's correlation of a[j] and e[j]              (4)

s: score of the class. R[j]: regions; in (3) squares at random places, in (4) the patches of a grid. b, the best scale
of the map, is 0 where the map is 0 in all regions.
(3): Yeh et al., NeurIPS 2019, https://arxiv.org/abs/1901.09392, with squares removed; captum has b as `normalize`.
(4): Hesse et al., NeurIPS 2024, https://arxiv.org/abs/2407.11910. It is their in-domain score if the network was
trained further on images without a random patch, which `without_patch` makes; to other networks they may be new.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.map_operations import degenerate, one_of

from .core.base import Fact, ImageMetric, RescoringMetric, as_tuple
from .core.perturbation import Replacement, Substrate
from .core.rescoring import Kind, ScoredBatch, kind_index
from .core.similarity import spearman


class RemovalMetric(ImageMetric):
    """Base of the metrics that compare (1) and (2).

    Args:
        substrate: what removed pixels are replaced by: "mean", "black", "min", "uniform", "blur", "gaussian" or a
            tensor.
        score: s: "prob" of a softmax, "sigmoid" for several labels, or "logit".
        mean: the normalization's, which the substrate "black" needs; with `std`.
        std: see `mean`.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    update = RescoringMetric.update

    def __init__(
        self,
        substrate: Substrate | Tensor = "mean",
        score: Literal["prob", "sigmoid", "logit"] = "prob",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        one_of("score", score, "prob", "sigmoid", "logit")
        self.score: Kind = score
        self.replacement = Replacement(substrate, mean=as_tuple(mean), std=as_tuple(std))
        self.chunk_size = chunk_size
        super().__init__()

    def options(self) -> dict[str, Fact]:
        return {"score": self.score, **self.replacement.facts()}

    def regions(self, spatial: Sequence[int]) -> Tensor:
        """Return R (J, *spatial)."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement regions(spatial).")

    def predicted_and_measured(self, scored: ScoredBatch) -> tuple[Tensor, Tensor]:
        """Return a and e, (B, J) each."""
        x, S = scored.images, scored.saliency
        R = self.regions(x.shape[2:]).to(x.device)
        facts = {**self.options(), "score": ""}  # each kind of score is computed
        without = scored.once_clean((type(self), *facts.items()), lambda: self._without(scored, R))  # for all maps
        e = (scored.clean_scores()[:, None] - without)[..., kind_index(self.score)]  # (1)
        return S.to(e).flatten(1) @ R.flatten(1).to(e).T, e  # (2)

    def _without(self, scored: ScoredBatch, R: Tensor) -> Tensor:
        """Return scores (B, J, S) of the images without each region."""
        x, r = scored.images, self.replacement(scored.images)
        image = torch.arange(len(x), device=x.device).repeat_interleave(len(R))
        region = torch.arange(len(R), device=x.device).repeat(len(x))

        def make(rows: slice) -> Tensor:
            return torch.where(R[region[rows]][:, None], r[image[rows]], x[image[rows]])

        return scored.rescore(make, image).view(len(x), len(R), -1)


class Infidelity(RemovalMetric):
    """Mean squared error with which the map, scaled as well as can be, predicts the effect of removed squares (3).

    >>> Infidelity(n=8).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        n: number of squares.
        side: of a square, as a share of the image's shorter side.
        seed: of the places, which are the same for all images.
    """

    higher_is_better = False
    formula = "mean over j of (b sum over R[j] of S - (s(x) - s(x without R[j])))^2"
    unit = "squared score"
    bounds = (0.0, 1.0)
    logit_bounds = (0.0, torch.inf)

    def __init__(
        self,
        n: int = 50,
        side: float = 0.25,
        seed: int = 0,
        substrate: Substrate | Tensor = "mean",
        score: Literal["prob", "sigmoid", "logit"] = "prob",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if n < 1 or not 0 < side < 1:
            raise ValueError(f"expected n >= 1 and side above 0 and below 1, got n={n}, side={side}.")
        self.n, self.side, self.seed = n, side, seed
        super().__init__(substrate, score, mean, std, chunk_size)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "squares": self.n, "side": self.side, "seed": self.seed}

    def regions(self, spatial: Sequence[int]) -> Tensor:
        side = max(1, round(self.side * min(spatial)))
        generator = torch.Generator().manual_seed(self.seed)
        R = torch.ones(self.n, *spatial, dtype=torch.bool)
        for dim, size in enumerate(spatial):
            first = torch.randint(size - side + 1, (self.n, 1), generator=generator)
            place = torch.arange(size)
            R &= in_dimension((first <= place) & (place < first + side), dim, len(spatial))
        return R

    def values(self, scored: ScoredBatch) -> Tensor:
        a, e = self.predicted_and_measured(scored)
        square = a.square().sum(1)
        b = (a * e).sum(1) / square.masked_fill(square == 0, 1)
        return (b[:, None] * a - e).square().mean(1)  # (3)


class SingleDeletion(RemovalMetric):
    """Rank correlation of the map's sums over patches with the effect of removing each patch alone (4).

    A map whose patches all have the same sum counts as 0. Images whose patches all have the same effect are left out.

    >>> SingleDeletion(patches=2).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        patches: number of patches in each direction.
    """

    higher_is_better = True
    formula = "Spearman's correlation of the sum over R[j] of S and s(x) - s(x without R[j])"
    unit = "correlation"
    bounds = (-1.0, 1.0)
    logit_bounds = None

    def __init__(
        self,
        patches: int = 4,
        substrate: Substrate | Tensor = "mean",
        score: Literal["prob", "sigmoid", "logit"] = "logit",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if patches < 2:
            raise ValueError(f"expected at least 2 patches in each direction, got {patches}.")
        self.patches = patches
        super().__init__(substrate, score, mean, std, chunk_size)

    def options(self) -> dict[str, Fact]:
        return {**super().options(), "patches": self.patches}

    def regions(self, spatial: Sequence[int]) -> Tensor:
        return grid_regions(spatial, self.patches)

    def values(self, scored: ScoredBatch) -> Tensor:
        a, e = self.predicted_and_measured(scored)
        return torch.where(degenerate(a) & a.isfinite().all(1), 0.0, spearman(a, e)).masked_fill(
            degenerate(e), torch.nan
        )


def grid_regions(spatial: Sequence[int], patches: int) -> Tensor:
    """Return the patches of a grid as masks (patches ** D, *spatial).

    >>> grid_regions((4, 4), 2).flatten(1).sum(1)
    tensor([4, 4, 4, 4])
    """
    if patches > min(spatial):
        raise ValueError(f"expected at most {min(spatial)} patches in each direction of images {tuple(spatial)}.")
    cell = torch.zeros(tuple(spatial), dtype=torch.long)
    for dim, size in enumerate(spatial):
        cell = cell * patches + in_dimension((torch.arange(size) * patches // size)[None], dim, len(spatial))[0]
    return torch.arange(patches ** len(spatial)).view(-1, *[1] * len(spatial)) == cell


def without_patch(images: Tensor, patches: int = 4, substrate: Substrate | Tensor = "mean") -> Tensor:
    """Return images of which each lacks one patch, or none, at random: for the training that (4) wants.

    >>> without_patch(torch.ones(2, 3, 16, 16), patches=2).shape
    torch.Size([2, 3, 16, 16])
    """
    R = grid_regions(images.shape[2:], patches).to(images.device)
    R = torch.cat([R, torch.zeros_like(R[:1])])
    which = torch.randint(len(R), (len(images),)).to(images.device)
    return torch.where(R[which][:, None], Replacement(substrate)(images), images)


def in_dimension(rows: Tensor, dim: int, dims: int) -> Tensor:
    """Return rows (J, size) as (J, 1, ..., size, ..., 1), with the size in one of several dimensions."""
    return rows.view(len(rows), *[rows.shape[1] if d == dim else 1 for d in range(dims)])
