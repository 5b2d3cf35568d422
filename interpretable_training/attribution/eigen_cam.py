"""Eigen-CAM. Muhammad and Yeasin, IJCNN 2020, https://arxiv.org/abs/2008.00299

    X   = A as a matrix, one row per cell, one column per channel; centered: minus its column means    (1)
    S   = relu(X v), v the first right singular vector of X                                            (2)
        = relu(s u), s the first singular value and u the first left singular vector

A: activations of `layer`. The sign of v is arbitrary: by default the value of largest magnitude is positive.
Differs from the paper: X is centered, as in pytorch-grad-cam, unless `center=False`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .core.base import GradientCAM
from .core.precision import wide


@dataclass(frozen=True)
class EigenCAM(GradientCAM):
    """Project the features of a layer onto their first principal component; every class has the same map.

    >>> EigenCAM()(network, images).shape
    torch.Size([4, 16, 16])

    Args:
        center: subtract the mean of each channel.
        sign: make the value of largest magnitude positive ("max"), or the correlation with the mean feature ("mean");
            "none" keeps the sign of the decomposition.
    """

    center: bool = True
    sign: Literal["max", "mean", "none"] = "max"
    needs_gradient: ClassVar[bool] = False

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        A = A if wide(A) == torch.float64 else A.cpu()  # a Gram matrix squares the error of float32
        X = A.flatten(2).transpose(1, 2).double()  # (1), (B, cells, K)
        finite = X.isfinite().all(2).all(1)[:, None]
        X = X.nan_to_num(0, 0, 0)
        if self.center:
            X = X - X.mean(1, keepdim=True)
        S = _first_component(X)  # (2)
        if self.sign == "max":
            side = S.amax(1) + S.amin(1)
        elif self.sign == "mean":
            mean = A.flatten(2).mean(1)
            side = (S * (mean - mean.mean(1, keepdim=True))).sum(1)
        else:
            side = torch.ones_like(S[:, 0])
        S = torch.where(side[:, None] < 0, -S, S).masked_fill(~finite, torch.nan)
        return S.to(dA.dtype).to(dA.device).unflatten(1, A.shape[2:])


def _first_component(X: Tensor) -> Tensor:
    # The last eigenvector of the smaller of the two Gram matrices is the first singular vector on that side.
    if X.shape[1] <= X.shape[2]:
        s2, U = torch.linalg.eigh(X @ X.mT)
        return U[..., -1] * s2[:, -1:].clamp(min=0).sqrt()
    return (X @ torch.linalg.eigh(X.mT @ X).eigenvectors[..., -1:])[..., 0]
