"""XGrad-CAM, also Axiom-CAM. Fu et al., BMVC 2020, https://arxiv.org/abs/2008.02312

    w[k] = sum over i, j of A[k, i, j] dy/dA[k, i, j] / sum over i, j of A[k, i, j]    (1)
    S    = relu(sum over k of w[k] A[k])                                               (2)

A: activations of `layer`. y: logit. Activations of a channel that sum to zero give w[k] = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import GradientCAM
from .grad_cam_plusplus import away_from_zero


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    """Weight the channels of a layer by their mean gradient, where each cell counts with its activation.

    >>> XGradCAM()(network, images, target).shape
    torch.Size([4, 16, 16])
    """

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        active = A.flatten(2).sum(2)
        w = (A * dA).flatten(2).sum(2) / away_from_zero(active)  # (1)
        w = w.masked_fill(active == 0, 0)
        return torch.einsum("bk,bk...->b...", w, A)  # (2)
