"""FullGrad. Srinivas and Fleuret, NeurIPS 2019, https://arxiv.org/abs/1905.00780

    T[0] = dy/dx * x, T[i] = dy/dz[i] * b[i]                        (1)
    S    = sum over i of sum over channels of up(n(|T[i]|))         (2)
    y    = sum over i of the sum of T[i], linear layers included    (3)

x: image. z[i], b[i]: output and bias of the convolution or batch norm i. n: range normalization of the whole tensor
T[i] of an image ("layer"), or of each channel. y: logit; (3) is exact for networks that are piecewise linear.
Differs from the authors' code: no epsilon in n, so that the scale of the logits does not matter.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .core.base import Attribution
from .core.bias_terms import split
from .core.map_operations import EPS, normalize, resize
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Target


@dataclass(frozen=True)
class FullGrad(Attribution):
    """Sum the contributions of the image and of every bias in the network.

    >>> FullGrad()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        rescale: n in (2) of each "layer" as the authors, of each "channel" as pytorch-grad-cam, or "none" as the paper.
        implicit: include the implicit biases of activations such as GELU and SiLU.
        align_corners: passed to the interpolation that upsamples the maps; True in the authors' code.
    """

    rescale: Literal["layer", "channel", "none"] = "layer"
    implicit: bool = False
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        maps: list[Tensor] = [torch.zeros_like(images[:, 0])]

        def add(T: Tensor, total: Tensor | None = None) -> None:
            maps[0] = maps[0] + resize(self._over_channels(T.abs_()), images.shape[2:], self.align_corners)  # (2)

        add(split(prepared, images, target, add, self.implicit).T)  # (1)
        return maps[0]

    def delta(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> Tensor:
        """Return the completeness error, sum of all T - y (B,)."""
        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            resolved = prepared.resolve(images, target)
            return split(prepared, images, resolved, lambda T, total: None, self.implicit).missing()  # (3)

    def _over_channels(self, v: Tensor) -> Tensor:
        """Return the sum over channels of n(v), (B, *spatial)."""
        if self.rescale == "none":
            return v.sum(1)
        if self.rescale == "channel":
            return normalize(v.flatten(0, 1)).view_as(v).sum(1)
        low, high = v.flatten(1).aminmax(dim=1)
        span = high - low
        flat = span <= EPS * high
        low, span, flat = (t.reshape(-1, *[1] * (v.ndim - 2)) for t in (low, span, flat))
        return ((v.sum(1) - v.shape[1] * low) / span.masked_fill(flat, 1)).masked_fill(flat, 0)
