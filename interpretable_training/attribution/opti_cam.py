"""Opti-CAM. Zhang et al., CVIU 2024, https://arxiv.org/abs/2301.07002

    S(u) = sum over k of softmax(u)[k] A[k]        (1)
    m(u) = n(up(S(u)))                             (2)
    maximize over u  y(m(u) * x)                   (3) "mask"
               or   -|y(x) - y(m(u) * x)|          (4) "diff"

A: activations of `layer`, rectified. n: normalization. y: logit. x: image. The map is m(u), in [0, 1].
u starts at a constant, S(u) at the mean of A; Adam updates u. An image leaves the batch when its objective changes by
less than `tolerance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import GradientCAM, full
from .core.capture import capture
from .core.map_operations import Normalization, mask_images, normalize, resize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, take

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's


@dataclass(frozen=True)
class OptiCAM(GradientCAM):
    """Find the mixture of channels through which the score of the image is highest.

    >>> OptiCAM(steps=5)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        objective: "mask" (3) or "diff" (4).
        n: normalization of the map in (2).
        steps: largest number of iterations.
        lr: Adam's learning rate.
        tolerance: change of the objective below which an image is finished.
        stop: "tolerance", or "official": compare the objective of the whole batch at the first step, and after each
            further tenth of the steps, with the one before; when it has fallen, end the batch with the present map.
        keep: the map of the "last" iterate or of the "best".
        mean: of the images' normalization; with `std`, masked pixels become black instead of the mean color.
        std: see `mean`.
    """

    objective: Literal["mask", "diff"] = "mask"
    n: Normalization = "range"
    steps: int = 100
    lr: float = 0.1
    tolerance: float = 1e-10
    stop: Literal["tolerance", "official"] = "tolerance"
    keep: Literal["last", "best"] = "last"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def final(self) -> bool:
        return True  # m(u) of (2), whatever n is

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        A = full(capture(prepared, images, [layer], target, gradient=False).A[layer]).relu()
        with torch.no_grad():
            y0 = prepared.score(images, target, self.score)
        u = self._optimize(prepared, images, target, A, y0)
        return self._map(u, A, images)

    def _map(self, u: Tensor, A: Tensor, images: Tensor) -> Tensor:
        S = torch.einsum("bk,bk...->b...", u.softmax(1), A)  # (1)
        return normalize(resize(S, images.shape[2:], self.align_corners), self.n)  # (2)

    def _optimize(self, prepared: PreparedModel, images: Tensor, target: Resolved, A: Tensor, y0: Tensor) -> Tensor:
        """Return u (B, K) after at most `steps` steps of Adam."""
        u = A.new_full(A.shape[:2], 0.5)
        first, second, best = torch.zeros_like(u), torch.zeros_like(u), u.clone()
        before, top = A.new_full((len(u),), torch.nan), A.new_full((len(u),), -torch.inf)
        tenth = -torch.inf  # the batch's objective a tenth of the steps ago
        live = torch.arange(len(u), device=u.device)
        for t in range(1, self.steps + 1):
            F, g = self._objective(prepared, images[live], take(target, live), A[live], y0[live], u[live])
            better = live[top[live] < F]
            best[better], top[better] = u[better], F[top[live] < F]
            if self.stop == "official" and (t - 1) % max(1, self.steps // 10) == 0:
                if F.sum() < tenth:
                    break  # before the update, so that u belongs to F
                tenth = float(F.sum())
            first[live] = BETA1 * first[live] + (1 - BETA1) * g
            second[live] = BETA2 * second[live] + (1 - BETA2) * g**2
            step = first[live] / (1 - BETA1**t) / ((second[live] / (1 - BETA2**t)).sqrt() + EPS)
            u[live] = u[live] + self.lr * step  # ascent: the objective is maximized
            done = (F - before[live]).abs() < self.tolerance if self.stop == "tolerance" else torch.zeros_like(F).bool()
            before[live] = F
            live = live[~done]
            if len(live) == 0:
                break
        return best if self.keep == "best" else u

    def _objective(
        self, prepared: PreparedModel, images: Tensor, target: Resolved, A: Tensor, y0: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the objective of each image (B,) and its gradient with respect to u (B, K)."""
        u = u.detach().requires_grad_()
        masked = mask_images(images, self._map(u, A, images), self.mean, self.std)
        y = prepared.score(masked, target, self.score)
        F = y if self.objective == "mask" else -(y0 - y).abs()  # (3), (4)
        (g,) = torch.autograd.grad(F.sum(), u)
        return full(F.detach()), g
