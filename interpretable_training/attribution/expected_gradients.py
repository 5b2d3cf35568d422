"""Expected gradients. Erion et al., Nature Machine Intelligence 2021, https://arxiv.org/abs/1906.10670

    phi = mean over s of (x - x'[s]) * dy(x'[s] + a[s] (x - x'[s]))/dx    (1)
    S   = |sum over channels of phi|                                     (2)

x: image (C, H, W). x'[s]: drawn from `baselines`. a[s] ~ U(0, 1). y: logit of the target class.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .core.base import Attribution
from .core.baselines import Baselines, as_baselines
from .core.gradient_sums import per_input, sum_over_inputs
from .core.precision import wide
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class ExpectedGradients(Attribution):
    """Average integrated gradients over baselines from the data.

    >>> baselines = torch.zeros(2, 3, 16, 16)
    >>> ExpectedGradients(baselines, n=4)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        baselines: images (N, C, ...) from the training data, normalized like the images, or `Baselines`.
        n: number of draws.
        draws: "iid", or "sequential": one baseline after the other, each used equally often.
        stratified_alpha: draw one a in each of n equal intervals of [0, 1] instead of independent ones.
        reduce: of the channels, see `Gradient`.
        score: see `Gradient`.
        seed: of the draws, which are the same for every image.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    baselines: Tensor | Baselines
    n: int = 50
    draws: Literal["iid", "sequential"] = "iid"
    stratified_alpha: bool = False
    reduce: Reduce = "abs_of_sum"
    score: Score = "logit"
    seed: int = 0
    chunk_size: int | None = None

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        baselines = as_baselines(self.baselines)
        baselines.check(images)
        index, a = self._draw(len(baselines))
        index, a = index.to(images.device), a.to(images.device, wide(images))
        base = baselines.images.to(images)
        phi = sum_over_inputs(
            prepared,
            images,
            target,
            self.n,
            make=lambda i, s: base[index[s]] + per_input(a[s], images) * (images[i] - base[index[s]]),
            weigh=lambda g, i, s: (images[i] - base[index[s]]) * g / self.n,  # (1)
            score=self.score,
            chunk_size=self.chunk_size,
        )
        return reduce_channels(phi, self.reduce)  # (2)

    def _draw(self, N: int) -> tuple[Tensor, Tensor]:
        """Return the indices of baselines among N, and a, (n,) each."""
        if self.n < 1:
            raise ValueError(f"expected n of at least 1, got {self.n}.")
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.randint(N, (self.n,), generator=generator)
        if self.draws == "sequential":
            index = torch.arange(self.n) % N
        a = torch.rand(self.n, generator=generator, dtype=torch.float64)
        if self.stratified_alpha:
            a = ((torch.arange(self.n) + a) / self.n)[torch.randperm(self.n, generator=generator)]
        return index, a
