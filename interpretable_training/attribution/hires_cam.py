"""HiResCAM. Draelos and Carin, 2020, https://arxiv.org/abs/2011.08891

    S = relu(sum over k of dy/dA[k] A[k])    (1)

A: activations of `layer`. y: logit of the target class.
Differs from the paper: the relu, which the authors leave out; `relu=False` leaves it out too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import GradientCAM


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """Multiply the features of a layer with their gradients cell by cell, and sum over channels.

    >>> HiResCAM()(network, images, target).shape
    torch.Size([4, 16, 16])
    """

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        return torch.einsum("bk...,bk...->b...", dA, A)  # (1)
