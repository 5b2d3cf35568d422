"""Grad-CAM. Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391

    w[k] = mean over i, j of dy/dA[k, i, j]    (1)
    S    = relu(sum over k of w[k] A[k])       (2)

A: activations of `layer`. y: logit of the target class. The base class applies the relu, unless `relu=False`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import GradientCAM


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """Weight the channels of a layer by their mean gradient.

    >>> GradCAM(layer="1")(network, images, target).shape
    torch.Size([4, 16, 16])
    """

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        w = dA.flatten(2).mean(2)  # (1), (B, K)
        return torch.einsum("bk,bk...->b...", w, A)  # (2), (B, h, w)
