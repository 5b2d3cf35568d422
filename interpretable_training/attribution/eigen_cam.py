"""Eigen-CAM. Muhammad and Yeasin, IJCNN 2020, https://arxiv.org/abs/2008.00299

    X   = A as a matrix, one row a place, one column a channel; centered: minus its column means    (1)
    S   = relu(X v), v the first right singular vector of X                                         (2)
        = relu(s u), s the first singular value and u the first left singular vector

A: activations of `layer`. The sign of v is arbitrary: by default the side of the largest magnitude is positive.
Differs from the paper: X is centered, as in pytorch-grad-cam; `center=False` leaves that away.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .core.base import GradientCAM
from .core.precision import wide


@dataclass(frozen=True)
class EigenCAM(GradientCAM):
    """The first principal component of the features, whatever the class.

    Args:
        center: subtract the mean of each channel.
        sign: positive is the side of the largest magnitude ("max"), of the mean feature ("mean"), or left ("none").
    """

    center: bool = True
    sign: Literal["max", "mean", "none"] = "max"
    needs_gradient: ClassVar[bool] = False

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        A = A if wide(A) == torch.float64 else A.cpu()  # a Gram matrix squares the error of float32
        X = A.flatten(2).transpose(1, 2).double()  # (1), (B, places, K)
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
    # From the smaller of the two Gram matrices, whose last eigenvector is the first singular vector on that side.
    if X.shape[1] <= X.shape[2]:
        s2, U = torch.linalg.eigh(X @ X.mT)
        return U[..., -1] * s2[:, -1:].clamp(min=0).sqrt()
    return (X @ torch.linalg.eigh(X.mT @ X).eigenvectors[..., -1:])[..., 0]
