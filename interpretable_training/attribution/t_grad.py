"""T-Grad. Tran, Mai, Le and Le: A Trustworthy Gradient Explanation for Convolutional Neural Networks.

    T[0]  = dy/dx * x, T[i] = dy/dz[i] * b[i]                 (1)
    S[i]  = sum over channels of relu(T[i])                   (2)
    v[i]  = relu(sum over channels and places of T[i])        (3)
    S     = sum over i of v[i] up(S[i]) / sum of up(S[i])     (4)
    y     = sum over i of the sum of T[i], linear layers too  (5)

x: image. z[i], b[i]: output and bias of the convolution or batch norm i. y: logit; (5) is exact for networks that are
piecewise linear. Biases of linear layers have no place in the image and no part in S, unless `fc="uniform"`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .core.base import Attribution
from .core.bias_terms import Split, split
from .core.map_operations import resize
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Target


class TGradParts(NamedTuple):
    """What T-Grad is made of, the image first and then from the last layer to the first.

    maps: S[i] of (2), each (B, h, w). scores: v[i] of (3), (L, B). totals: the sums of T[i] before the relu, (L, B).
    residual: the sum over biases without a place (B,). delta: what completeness misses, sum of all T - y (B,).
    """

    maps: list[Tensor]
    scores: Tensor
    totals: Tensor
    residual: Tensor
    delta: Tensor


@dataclass(frozen=True)
class TGrad(Attribution):
    """Positive contributions of the image and of every bias, each layer weighted by what it contributes.

    Args:
        implicit: count the implicit biases of activations such as GELU and SiLU, too.
        fc: biases without a place are left to the "residual" of `parts`, or spread as a "uniform" map.
        align_corners: how upsampling places the corners.
    """

    implicit: bool = False
    fc: Literal["residual", "uniform"] = "residual"
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        maps: list[Tensor] = [torch.zeros_like(images[:, 0])]

        def add(T: Tensor, total: Tensor) -> None:
            up = resize(T.relu_().sum(1), images.shape[2:], self.align_corners)  # (2)
            maps[0] = maps[0] + _weighted(up, total)

        found = split(prepared, images, target, add, self.implicit)
        add(found.T, found.T.flatten(1).sum(1))  # (1)
        if self.fc == "uniform":
            maps[0] = maps[0] + _weighted(torch.ones_like(maps[0]), found.rest)
        return maps[0]

    def parts(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> TGradParts:
        """The maps and scores of the layers, and what does not enter the map."""
        maps: list[Tensor] = []
        totals: list[Tensor] = []

        def keep(T: Tensor, total: Tensor) -> None:
            maps.append(T.relu().sum(1))  # (2)
            totals.append(total)

        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            found: Split = split(prepared, images, prepared.resolve(images, target), keep, self.implicit)
        keep(found.T, found.T.flatten(1).sum(1))
        total = torch.stack([totals[-1], *totals[:-1]])
        return TGradParts([maps[-1], *maps[:-1]], total.relu(), total, found.rest, found.missing())  # (3), (5)

    def delta(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> Tensor:
        """What completeness misses, sum of all T - y (B,)."""
        return self.parts(model, images, target, output=output).delta


def _weighted(up: Tensor, total: Tensor) -> Tensor:
    """One term of (4); zero where no contribution is positive."""
    mass = up.flatten(1).sum(1)
    weight = total.relu() / mass.masked_fill(mass == 0, 1)  # (3)
    return weight.reshape(-1, *[1] * (up.ndim - 1)) * up
