"""LayerCAM. Jiang et al., IEEE TIP 2021, https://doi.org/10.1109/TIP.2021.3089943

    S = relu(sum over k of relu(dy/dA[k]) A[k])    (1)

A: activations of `layer`. y: logit. For several layers the normalized maps are fused by their mean or maximum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import GradientCAM


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    """Multiply the features of a layer with their positive gradients cell by cell, and sum over channels.

    >>> LayerCAM(layer=["0", "1"])(network, images, target).shape
    torch.Size([4, 16, 16])
    """

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        return torch.einsum("bk...,bk...->b...", dA.relu(), A)  # (1)
