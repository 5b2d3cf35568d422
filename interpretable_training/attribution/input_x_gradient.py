"""Input times gradient. Shrikumar et al., 2016, https://arxiv.org/abs/1605.01713

    phi = x * dy/dx                          (1)
    S   = |sum over channels of phi|         (2)

x: normalized image (C, H, W), or the image in pixel space with `mean` and `std`. y: logit of the target class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .core.base import Attribution
from .core.input_gradients import input_gradient
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class InputXGradient(Attribution):
    """Multiply the gradient of the score with the image.

    >>> InputXGradient()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        reduce: of the channels, see `Gradient`.
        score: see `Gradient`.
        mean: of the images' normalization; with `std` the multiplier is the pixel in [0, 1].
        std: see `mean`.
    """

    reduce: Reduce = "abs_of_sum"
    score: Score = "logit"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        x = images
        if self.mean is not None and self.std is not None:
            mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (self.mean, self.std))
            mean, std = (v.view(-1, *[1] * (x.ndim - 2)) for v in (mean, std))
            x = x * std + mean
        return reduce_channels(x * input_gradient(prepared, images, target, self.score), self.reduce)  # (1), (2)
