"""Saliency by the gradient. Simonyan et al., ICLR-W 2014, https://arxiv.org/abs/1312.6034

    g = dy/dx                            (1)
    S = max over channels of |g|         (2)

x: image (C, H, W). y: logit of the target class.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .core.base import Attribution
from .core.input_gradients import input_gradient
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score

Reduce = Literal["max_abs", "abs_sum", "l2", "signed_sum", "abs_of_sum", "none"]


@dataclass(frozen=True)
class Gradient(Attribution):
    """Reduce the gradient of the score with respect to the image to one value per pixel.

    >>> Gradient()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        reduce: of the channels: "max_abs" (2), "abs_sum" (sum of |g|), "l2", "signed_sum", "abs_of_sum", or "none" for
            the volume (B, C, H, W).
        score: explain the "logit" or the "prob", "logprob", "sigmoid", "loss" of the class.
    """

    reduce: Reduce = "max_abs"
    score: Score = "logit"

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return reduce_channels(input_gradient(prepared, images, target, self.score), self.reduce)  # (1), (2)


def reduce_channels(volume: Tensor, reduce: Reduce) -> Tensor:
    """Return the map (B, ...) of a volume (B, C, ...)."""
    if reduce == "none":
        return volume
    if reduce == "max_abs":
        return volume.abs().amax(1)  # (2)
    if reduce == "abs_sum":
        return volume.abs().sum(1)
    if reduce == "l2":
        return volume.square().sum(1).sqrt()
    return volume.sum(1) if reduce == "signed_sum" else volume.sum(1).abs()
