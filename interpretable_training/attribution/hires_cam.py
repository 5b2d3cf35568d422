"""HiResCAM. Draelos and Carin, 2020, https://arxiv.org/abs/2011.08891

    S = relu(sum over k of dy/dA[k] A[k])    (1)

A: activations of `layer`. y: logit of the target class.
Differs from the paper: the relu, which the authors leave away; `relu=False` does too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import GradientCAM


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """Gradient times activation, place by place."""

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        return torch.einsum("bk...,bk...->b...", dA, A)  # (1)
