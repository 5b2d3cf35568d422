"""Smooth Grad-CAM++. Omeiza et al., 2019, https://arxiv.org/abs/1908.01224

    x[s]       = x + noise[s], noise ~ N(0, sigma^2); g[s] = dy(x[s])/dA                  (1)
    D1, D2, D3 = mean over s of g, g^2, g^3                                               (2)
    a          = D2 / (2 D2 + sum over a, b of A[k, a, b] D3[k, a, b]), 0 where D2 = 0     (3)
    w[k]       = sum over i, j of a[k, i, j] relu(D1[k, i, j])                            (4)
    S          = relu(sum over k of w[k] A[k])                                            (5)

A: activations of `layer` for the image without noise. y: logit.
Differs from the paper: the numerator of (3) is D2; `numerator="D1"` is the paper's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.activation_gates import gates
from .core.base import GradientCAM, full
from .core.batching import in_chunks, seeded_noise
from .core.capture import capture
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, take
from .grad_cam_plusplus import gradient_ratio


@dataclass(frozen=True)
class SmoothGradCAMPlusPlus(GradientCAM):
    """Apply Grad-CAM++ to gradients averaged over noisy copies of the image.

    >>> SmoothGradCAMPlusPlus()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        n: number of noisy copies.
        sigma: standard deviation of the noise, in units of the normalized input.
        numerator: of (3).
        relu_of: gradients in (4): their "mean", or those of the "last" copy as in torch-cam.
        seed: of the noise, which is the same for every image.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    n: int = 4
    sigma: float = 0.3
    numerator: Literal["D1", "D2"] = "D2"
    relu_of: Literal["mean", "last"] = "mean"
    seed: int = 0
    chunk_size: int | None = None

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        if self.n < 1:
            raise ValueError(f"expected n of at least 1, got {self.n}.")
        A = full(capture(prepared, images, [layer], target, gradient=False).A[layer])
        noise = self.sigma * seeded_noise(self.seed, (self.n, *images.shape[1:]), images)
        D1, D2, D3, last = (torch.zeros_like(A) for _ in range(4))

        def add(rows: slice) -> None:
            pair = torch.arange(rows.start, rows.stop, device=images.device)
            s, i = pair // len(images), pair % len(images)
            with gates(self.rule) as rule:
                part = take(target, i)
                g = full(
                    capture(prepared, images[i] + noise[s], [layer], part, score=self.score, rule=rule).dA[layer]
                )  # (1)
            for D, power in ((D1, 1), (D2, 2), (D3, 3)):
                D.index_add_(0, i, g**power / self.n)  # (2)
            last[i[s == self.n - 1]] = g[s == self.n - 1]

        in_chunks(add, self.n * len(images), self.chunk_size, images)
        a = gradient_ratio(A, D1 if self.numerator == "D1" else D2, D2, D3, "sum_act_grad")  # (3)
        w = (a * (D1 if self.relu_of == "mean" else last).relu()).flatten(2).sum(2)  # (4)
        return torch.einsum("bk,bk...->b...", w, A)  # (5)
