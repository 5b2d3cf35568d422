"""SmoothGrad. Smilkov et al., 2017, https://arxiv.org/abs/1706.03825

    g[s] = dy(x + noise[s])/dx, noise ~ N(0, sigma^2)    (1)
    S    = mean over s of g[s]                           (2) "mean"
         = mean over s of g[s]^2                         (3) "square"
         = variance over s of g[s]                       (4) "variance", VarGrad

x: image (C, H, W). y: logit. `method=` replaces the gradient by the maps of any other method.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import Attribution
from .core.batching import seeded_noise
from .core.gradient_sums import per_input, sum_over_inputs
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """Average the gradient over noisy copies of the image.

    >>> SmoothGrad(n=4)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        n: number of copies.
        sigma: of the noise: a share of each image's range, max x - min x, or with `absolute` in units of the input.
        absolute: see `sigma`.
        statistic: (2), (3) or (4).
        method: explain the copies by this method instead of the gradient; its maps are averaged.
        reduce: of the channels, see `Gradient`; without `method`.
        score: see `Gradient`; without `method`.
        seed: of the noise, which is the same for every image.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    n: int = 25
    sigma: float = 0.15
    absolute: bool = False
    statistic: Literal["mean", "square", "variance"] = "mean"
    method: Attribution | None = None
    reduce: Reduce = "max_abs"
    score: Score = "logit"
    seed: int = 0
    chunk_size: int | None = None

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        if self.n < 1:
            raise ValueError(f"expected n of at least 1, got {self.n}.")
        noise = self.sigma * seeded_noise(self.seed, (self.n, *images.shape[1:]), images)
        span = torch.ones(len(images)) if self.absolute else images.flatten(1).amax(1) - images.flatten(1).amin(1)
        scale = per_input(span, images)
        if self.method is not None:
            copies = (self.method.attribute(prepared, images + scale * noise[s], target) for s in range(self.n))
            return self._statistic(sum(torch.stack([S, S**2]) / self.n for S in copies))  # type: ignore[arg-type]
        moments = sum_over_inputs(
            prepared,
            images,
            target,
            self.n,
            make=lambda i, s: images[i] + scale[i] * noise[s],  # (1)
            weigh=lambda g, i, s: torch.stack([g, g**2], 1) / self.n,
            score=self.score,
            chunk_size=self.chunk_size,
        )
        return reduce_channels(self._statistic(moments.transpose(0, 1)), self.reduce)

    def _statistic(self, moments: Tensor) -> Tensor:
        first, second = moments
        if self.statistic == "mean":
            return first  # (2)
        return second if self.statistic == "square" else second - first**2  # (3), (4)
