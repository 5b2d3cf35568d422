"""RISE. Petsiuk et al., BMVC 2018, https://arxiv.org/abs/1806.07421

    G[i] ~ Bernoulli(p1) on a grid of cells, M[i] = G[i] upsampled, shifted by less than a cell    (1)
    S    = 1 / (N p1) sum over i of p(M[i] * x) M[i]                                              (2)

x: image. p: probability of the target class. With `normalizer="empirical"`, (2) divides each pixel by its sum
over i of M[i] instead of the expectation N p1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import Attribution, full
from .core.batching import in_chunks
from .core.map_operations import mask_images
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score, take


@dataclass(frozen=True)
class RISE(Attribution):
    """Average random masks, each weighted by the score of the image seen through it.

    >>> RISE(n=50)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        n: number of masks.
        cells: of the grid, along each axis.
        p1: share of the cells that stay visible.
        normalizer: see (2).
        score: see `Gradient`.
        mean: of the images' normalization; with `std`, masked pixels become black instead of the mean color.
        std: see `mean`.
        borders: padding of the grids: "reflect", as in the authors' code, or "replicate".
        seed: of the masks, which are the same for every image.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    n: int = 8000
    cells: int = 7
    p1: float = 0.5
    normalizer: Literal["expected", "empirical"] = "expected"
    score: Score = "prob"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    borders: Literal["reflect", "replicate"] = "reflect"
    seed: int = 0
    chunk_size: int | None = None

    @torch.no_grad()
    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        masks, B = self._masks(images), len(images)
        total = torch.zeros(images[:, 0].shape, dtype=masks.dtype, device=images.device)
        mass = torch.zeros_like(total[0])

        def score(rows: slice) -> None:
            pair = torch.arange(rows.start, rows.stop, device=images.device)
            first, s, i = rows.start // B, pair // B, pair % B
            M = masks.at(torch.arange(first, (rows.stop - 1) // B + 1, device=images.device))[s - first]  # (1)
            output = prepared.run_fast(mask_images(images[i], M, self.mean, self.std))
            p = full(prepared.score_in(output, take(target, i), self.score)).to(M)
            weighted, once = p.reshape(-1, *[1] * (M.ndim - 1)) * M, M[i == 0].sum(0)
            total.index_add_(0, i, weighted)  # (2)
            mass.add_(once)

        in_chunks(score, self.n * B, self.chunk_size, images)
        return total / (mass.clamp(min=torch.finfo(mass.dtype).tiny) if self.normalizer == "empirical" else masks.mass)

    def _masks(self, images: Tensor) -> "_Masks":
        if self.n < 1 or self.cells < 1 or not 0 < self.p1 <= 1:
            raise ValueError(
                f"expected n and cells of at least 1 and 0 < p1 <= 1, got n={self.n}, cells={self.cells}, p1={self.p1}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        size = images.shape[2:]
        dtype = full(images[:0]).dtype
        grid = (torch.rand(self.n, *[self.cells] * len(size), generator=generator) < self.p1).to(images.device, dtype)
        sides = [math.ceil(side / self.cells) for side in size]
        offsets = [torch.randint(side, (self.n,), generator=generator).to(images.device) for side in sides]
        return _Masks(grid, offsets, sides, size, self.n * self.p1, self.borders == "reflect")


@dataclass(frozen=True)
class _Masks:
    """Random grids, upsampled a few at a time because all masks together may not fit in memory."""

    grid: Tensor  # (N, cells, ...)
    offsets: Sequence[Tensor]  # (N,) for each axis
    sides: Sequence[int]  # of a cell
    size: Sequence[int]
    mass: float
    mirrored: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.grid.dtype

    def at(self, s: Tensor) -> Tensor:
        """Return the masks with the numbers s, (len(s), *size)."""
        M = self.grid[s]
        for axis, (offset, side, n) in enumerate(zip(self.offsets, self.sides, self.size), 1):
            weights = self._interpolation(offset[s], side, n)
            M = torch.einsum("npc,nc...->np...", weights, M.movedim(axis, 1)).movedim(1, axis)
        return M

    def _interpolation(self, offset: Tensor, side: int, n: int) -> Tensor:
        """Return the weight of each cell for each pixel along one axis, (len(offset), n, cells).

        The grid covers one cell more than the image; the image begins at the offset.
        """
        cells = self.grid.shape[1]
        p = offset[:, None] + torch.arange(n, device=offset.device)
        at = (p + 0.5).to(self.dtype) * cells / ((cells + 1) * side) - 0.5
        if self.mirrored:
            at = (cells - 1) - ((cells - 1) - at.abs()).abs()
        at = at.clamp(0, cells - 1)
        return (1 - (at[..., None] - torch.arange(cells, device=offset.device)).abs()).clamp(min=0)
