"""Integrated gradients. Sundararajan et al., ICML 2017, https://arxiv.org/abs/1703.01365

    phi = (x - x') * integral over a from 0 to 1 of dy(x' + a (x - x'))/dx    (1)
    S   = |sum over channels of phi|                                         (2)

x: image (C, H, W). x': baseline. y: logit. Complete: the sum of phi is y(x) - y(x') for enough `steps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .core.base import Attribution
from .core.gradient_sums import per_input, sum_over_inputs
from .core.map_operations import blur, mask_images
from .core.precision import wide
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Score, Target
from .gradient import Reduce, reduce_channels

Quadrature = Literal["gauss_legendre", "left", "right", "midpoint", "trapezoid"]


@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """Integrate the gradient along the straight path from a baseline to the image.

    >>> IntegratedGradients(steps=8)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        steps: number of points on the path.
        quadrature: positions and weights of the points.
        baseline: "zeros" of the network's input, "black" (needs `mean` and `std`), "mean" (each image's mean color),
            "blur" (11 x 11, sigma 5), or a tensor that expands to the shape of the images.
        reduce: of the channels, see `Gradient`.
        score: see `Gradient`.
        mean: of the images' normalization, for the black baseline.
        std: see `mean`.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    steps: int = 50
    quadrature: Quadrature = "gauss_legendre"
    baseline: Literal["zeros", "black", "mean", "blur"] | Tensor = "zeros"
    reduce: Reduce = "abs_of_sum"
    score: Score = "logit"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    chunk_size: int | None = None

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return reduce_channels(self._phi(prepared, images, target), self.reduce)  # (2)

    def delta(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> Tensor:
        """Return the completeness error, sum of phi - (y(x) - y(x')), (B,)."""
        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            target = prepared.resolve(images, target)
            phi = self._phi(prepared, images, target)
            with torch.no_grad():
                y, y0 = (prepared.score(x, target, self.score) for x in (images, self._baseline(images)))
            return phi.flatten(1).sum(1) - (y - y0)

    def _phi(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        base = self._baseline(images)
        a, w = _points(self.quadrature, self.steps)
        a, w = (t.to(images.device, wide(images)) for t in (a, w))
        g = sum_over_inputs(
            prepared,
            images,
            target,
            self.steps,
            make=lambda i, s: base[i] + per_input(a[s], images) * (images[i] - base[i]),
            weigh=lambda g, i, s: per_input(w[s], images) * g,
            score=self.score,
            chunk_size=self.chunk_size,
        )
        return (images - base) * g  # (1)

    def _baseline(self, images: Tensor) -> Tensor:
        if isinstance(self.baseline, Tensor):
            base = self.baseline.to(images)
            try:
                return base.expand_as(images)
            except RuntimeError as error:
                shapes = f"{tuple(images.shape)}, got {tuple(base.shape)}"
                raise ValueError(f"expected a baseline that expands to images {shapes}.") from error
        if self.baseline == "zeros":
            return torch.zeros_like(images)
        if self.baseline == "mean":
            return images.flatten(2).mean(2).reshape(*images.shape[:2], *[1] * (images.ndim - 2)).expand_as(images)
        if self.baseline == "blur":
            return blur(images)
        if self.mean is None or self.std is None:
            raise ValueError("expected mean= and std= of the normalization with baseline='black', got none.")
        return mask_images(images, torch.zeros_like(images[:, 0]), self.mean, self.std)


def _points(quadrature: Quadrature, steps: int) -> tuple[Tensor, Tensor]:
    """Return points a in [0, 1] and weights w that sum to 1, (steps,) each."""
    if steps < 1 or (steps < 2 and quadrature == "trapezoid"):
        raise ValueError(f"expected at least one step (two for 'trapezoid'), got {steps}.")
    if quadrature == "gauss_legendre":
        k = torch.arange(1, steps, dtype=torch.float64)
        off = k / (4 * k**2 - 1).sqrt()
        a, V = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))  # Golub and Welsch, 1969
        return (a + 1) / 2, V[0] ** 2
    s = torch.arange(steps, dtype=torch.float64)
    w = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if quadrature == "trapezoid":
        w = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        w[0] = w[-1] = w[0] / 2
        return s / (steps - 1), w
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[quadrature]
    return (s + shift) / steps, w
