"""T-Grad. Tran, Mai, Le and Le: A Trustworthy Gradient Explanation for Convolutional Neural Networks.

    T[0]  = dy/dx * x, T[i] = dy/dz[i] * b[i]                 (1)
    S[i]  = sum over channels of relu(T[i])                   (2)
    v[i]  = relu(sum over channels and cells of T[i])         (3)
    S     = sum over i of v[i] up(S[i]) / sum of up(S[i])     (4)
    y     = sum over i of the sum of T[i], linear layers too  (5)

x: image. z[i], b[i]: output and bias of the convolution or batch norm i. y: logit; (5) is exact for networks that are
piecewise linear. Biases of linear layers have no position in the image and do not enter S, unless
`fc="uniform"`.
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
    """Parts of a T-Grad map, the image first and then from the last layer to the first.

    maps: S[i] of (2), each (B, h, w). scores: v[i] of (3), (L, B). totals: the sums of T[i] before the relu, (L, B).
    residual: the sum over biases without a position (B,). delta: completeness error, sum of all T - y (B,).
    """

    maps: list[Tensor]
    scores: Tensor
    totals: Tensor
    residual: Tensor
    delta: Tensor


@dataclass(frozen=True)
class TGrad(Attribution):
    """Sum the positive contributions of the image and of every bias, each layer weighted by its total contribution.

    >>> TGrad()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        implicit: include the implicit biases of activations such as GELU and SiLU.
        fc: biases without a position are left to the "residual" of `parts`, or spread as a "uniform" map.
        align_corners: passed to the interpolation that upsamples the map.
    """

    implicit: bool = False
    fc: Literal["residual", "uniform"] = "residual"
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        maps: list[Tensor] = [torch.zeros_like(images[:, 0])]

        def add(T: Tensor, total: Tensor) -> None:
            up = resize(T.relu_().sum(1), images.shape[2:], self.align_corners)  # (2)
            maps[0] = maps[0] + _weighted(up, total)

        terms = split(prepared, images, target, add, self.implicit)
        add(terms.T, terms.T.flatten(1).sum(1))  # (1)
        if self.fc == "uniform":
            maps[0] = maps[0] + _weighted(torch.ones_like(maps[0]), terms.rest)
        return maps[0]

    def parts(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> TGradParts:
        """Return the maps and scores of the layers, and the parts that do not enter the map."""
        maps: list[Tensor] = []
        totals: list[Tensor] = []

        def keep(T: Tensor, total: Tensor) -> None:
            maps.append(T.relu().sum(1))  # (2)
            totals.append(total)

        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            terms: Split = split(prepared, images, prepared.resolve(images, target), keep, self.implicit)
        keep(terms.T, terms.T.flatten(1).sum(1))
        total = torch.stack([totals[-1], *totals[:-1]])
        return TGradParts([maps[-1], *maps[:-1]], total.relu(), total, terms.rest, terms.missing())  # (3), (5)

    def delta(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> Tensor:
        """Return the completeness error, sum of all T - y (B,)."""
        return self.parts(model, images, target, output=output).delta


def _weighted(up: Tensor, total: Tensor) -> Tensor:
    """Return one term of (4); zero where no contribution is positive."""
    mass = up.flatten(1).sum(1)
    weight = total.relu() / mass.masked_fill(mass == 0, 1)  # (3)
    return weight.reshape(-1, *[1] * (up.ndim - 1)) * up
