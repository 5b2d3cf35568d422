"""Extremal perturbation. Fong et al., ICCV 2019, https://arxiv.org/abs/1910.08485

    M[g](u) = smooth max over cells v of k(|u - v| / sigma) g[v], k(z) = exp(-2 max(z - 1/2, 0)^2)
    m       = min(M[g] / M[1], 1)                                                                    (1)
    x[m]    = x blurred at each pixel as much as m is below 1                                        (2)
    maximize over g in [0, 1]  100 r / R - lambda[t] mean((sort(m) - ref)^2)                         (3)
    r       = y(x[m]) "preserve", -y(x[1 - m]) "delete", y(x[m]) - y(x[1 - m]) "dual"                (4)

g: a value for each cell v of a grid. smooth max: the mean, weighted with the softmax of `coldness` times the values.
ref: zeros, then ones on the share `area` of the pixels. lambda[t] grows with every step. y: logit. R: the range of y
over images that are blurred evenly, at each level of (2). The map is m, or the sum over several areas, found by
gradient ascent with momentum; images are mirrored at every second step.
Differs from the authors' code: M[g] is divided by M[1], else cells of 1 leave borders and some pixels of each cell
brighter, and the area term prefers those; r counts in percent of R, else the area alone decides where logits are small;
m of (3) has no margin around the image, so that `area` is a share of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import Attribution, full
from .core.batching import in_chunks
from .core.map_operations import Borders, blur
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score, pick_logits, score_of, take

MOMENTUM, COLDNESS = 0.9, 20.0


@dataclass(frozen=True)
class ExtremalPerturbation(Attribution):
    """Find the mask of a given area through which the score of the image is highest.

    >>> ExtremalPerturbation(areas=[0.2], steps=2)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        areas: shares of the image that the masks keep; the masks of several areas are added.
        variant: r of (4).
        contrastive: explain the score minus that of the largest other logit.
        steps: number of steps of the ascent.
        step: distance of two cells in pixels.
        sigma: reach of a cell in pixels.
        levels: number of levels of blur; (2) interpolates between them.
        blur_sigma: standard deviation of the strongest blur in pixels.
        borders: padding of the image for blur: zeros ("constant"), as in the authors' code, which mix the mean color
            into the borders of the image; or its border pixels, repeated ("replicate") or mirrored ("reflect").
        weight: lambda at the first step.
        growth: factor of lambda from step to step.
        lr: step size of the ascent. Fewer steps need a larger step size and a faster growth: steps=100 with lr=0.08
            and growth=1.0283 give masks like those of 800 steps.
        mirror: mirror images, not signals, at every second step.
        score: see `Gradient`.
        chunk_size: masks that are optimized at once; None chooses it by device and image size.
        relative: divide r by R; else (3) maximizes r itself, as the authors' code does.
    """

    areas: Sequence[float] = (0.1,)
    variant: Literal["preserve", "delete", "dual"] = "preserve"
    contrastive: bool = False
    steps: int = 800
    step: int = 7
    sigma: float = 21.0
    levels: int = 8
    blur_sigma: float = 20.0
    borders: Borders = "constant"
    weight: float = 300.0
    growth: float = 1.0035
    lr: float = 0.01
    mirror: bool = True
    score: Score = "logit"
    chunk_size: int | None = None
    relative: bool = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        shares = self.areas if isinstance(self.areas, Sequence) else ()
        right = shares and all(0 < area < 1 for area in shares) and self.levels > 1 and isinstance(self.step, int)
        if not right or self.step < 1 or self.sigma <= 0 or self.blur_sigma < 0:
            raise ValueError(
                f"expected areas as a list of shares between 0 and 1, levels of at least 2, a whole step of at least "
                f"1, sigma above 0 and blur_sigma of at least 0, got areas={self.areas}, levels={self.levels}, "
                f"step={self.step}, sigma={self.sigma}, blur_sigma={self.blur_sigma}."
            )
        areas = torch.tensor(list(shares), device=images.device)
        maps = torch.zeros(len(areas), *images[:, 0].shape, dtype=full(images[:0]).dtype, device=images.device)

        def optimize(rows: slice) -> None:
            pair = torch.arange(rows.start, rows.stop, device=images.device)
            i, a = pair // len(areas), pair % len(areas)
            maps[a, i] = self._optimize(prepared, images[i], take(target, i), areas[a]).to(maps)

        in_chunks(optimize, len(areas) * len(images), self.chunk_size, images)
        return maps.sum(0)

    def _optimize(self, prepared: PreparedModel, images: Tensor, target: Resolved, areas: Tensor) -> Tensor:
        """Return the masks (B, *spatial) after the last step."""
        mask = _Mask(images, self.step, self.sigma)
        pyramid = _pyramid(full(images), self.levels, self.blur_sigma, self.borders)
        pixels = math.prod(images.shape[2:])
        ref = (torch.arange(pixels, device=images.device) >= (pixels * (1 - areas[:, None])).floor()).to(pyramid.dtype)
        g = torch.ones(len(images), *mask.grid, dtype=pyramid.dtype, device=images.device)
        unit = self._unit(prepared, pyramid, target, images.dtype) if self.relative else 1
        velocity: Tensor | None = None
        weight = self.weight
        for t in range(self.steps):
            with torch.enable_grad():
                g.requires_grad_()
                m = mask(g)
                area = (m.flatten(1).sort(1).values - ref).square().mean(1)
                r = self._reward(prepared, pyramid, m, target, images.dtype, flip=self.mirror and t % 2 == 0)
                objective = full(r) / unit - weight * area  # (3)
                (slope,) = torch.autograd.grad(objective.sum(), g)
            velocity = slope if velocity is None else MOMENTUM * velocity + (1 - MOMENTUM) * slope
            g = (g.detach() + self.lr * velocity).clamp(0, 1)
            weight *= self.growth
        return mask(g).detach()

    def _reward(
        self, prepared: PreparedModel, pyramid: Tensor, m: Tensor, target: Resolved, dtype: torch.dtype, flip: bool
    ) -> Tensor:
        """Return r of (4) for each mask, (B,)."""

        def y(mask: Tensor) -> Tensor:
            x = _blurred(pyramid, mask).to(dtype)
            return self._y(prepared, x.flip(-1) if flip and x.ndim > 3 else x, target)

        if self.variant == "preserve":
            return y(m)
        return -y(1 - m) if self.variant == "delete" else y(m) - y(1 - m)

    def _unit(self, prepared: PreparedModel, pyramid: Tensor, target: Resolved, dtype: torch.dtype) -> Tensor:
        """Return R / 100 of each image, (B,); infinite where y is constant."""
        with torch.no_grad():
            y = torch.stack([full(self._y(prepared, x.to(dtype), target)) for x in pyramid.unbind(1)])
        R = y.amax(0) - y.amin(0)
        return (R / 100).masked_fill(R == 0, torch.inf)

    def _y(self, prepared: PreparedModel, x: Tensor, target: Resolved) -> Tensor:
        output = prepared.run(x)
        if not self.contrastive:
            return prepared.score_in(output, target, self.score)
        if not isinstance(target, Tensor):
            raise TypeError(
                "expected class indices as target with contrastive=True, got a callable; pass contrastive=False."
            )
        logits = pick_logits(output, prepared.output)
        y = score_of(logits, target, self.score, prepared.span)
        binary = logits.shape[1] == 1  # one logit stands for two classes
        other = 1 - target if binary else logits.scatter(1, target[:, None], -torch.inf).argmax(1)
        return y - score_of(logits, other, self.score, prepared.span)


def _pyramid(images: Tensor, levels: int, sigma: float, borders: Borders) -> Tensor:
    """Return the images at all levels of blur, the strongest first and the image last, (B, levels, C, *spatial)."""
    sigmas = [sigma * (1 - l / (levels - 1)) for l in range(levels)]  # noqa: E741
    return torch.stack([blur(images, 2 * math.ceil(4 * s) + 1, s, borders) if s else images for s in sigmas], 1)


def _blurred(pyramid: Tensor, m: Tensor) -> Tensor:
    """Return (2) for masks m (B, *spatial): linear interpolation between the two nearest levels."""
    top = pyramid.shape[1] - 1
    at = (m * top)[:, None, None]
    low = at.detach().nan_to_num().floor().clamp(0, top - 1)  # NaN has no level
    index = low.long().expand(-1, 1, *pyramid.shape[2:])
    below, above = pyramid.gather(1, index), pyramid.gather(1, index + 1)
    return torch.lerp(below, above, (at - low).expand_as(below))[:, 0]


class _Mask:
    """Map (1) from values of cells g (B, *grid) to masks m (B, *spatial)."""

    def __init__(self, images: Tensor, step: int, sigma: float) -> None:
        size = images.shape[2:]
        self.grid = [math.ceil(side / step) for side in size]
        self.radius = 1 + math.ceil(sigma / step)  # cells farther away have no influence
        near = torch.arange(-self.radius, self.radius + 1, device=images.device)
        self.index, squares = [], []
        for side in size:
            u = torch.arange(side, device=images.device)[:, None]
            v = u // step + near
            self.index.append(v + self.radius)  # indices into the padded grid
            squares.append((u - step * v).to(full(images[:0]).dtype).square())
        d2 = squares[0]
        for square in squares[1:]:  # (pixels, near) of each axis in turn
            d2 = d2[..., None, None] + square
        self.kernel = (-2 * (d2.sqrt() / sigma - 0.5).clamp(min=0).square()).exp()
        self.top = self._smooth_max(self.kernel.new_ones(1, *self.grid))

    def __call__(self, g: Tensor) -> Tensor:
        m = self._smooth_max(g) / self.top
        return m - (m - 1).relu().detach()  # (1); the ascent begins at the bound, where `clamp` has no slope

    def _smooth_max(self, g: Tensor) -> Tensor:
        values = torch.nn.functional.pad(g, [self.radius, self.radius + 1] * len(self.grid))
        for axis, index in enumerate(self.index):  # each axis becomes two axes: pixels, near
            values = values.index_select(1 + 2 * axis, index.flatten()).unflatten(1 + 2 * axis, index.shape)
        values = self.kernel * values
        axes = range(len(self.index))
        values = values.permute(0, *[1 + 2 * k for k in axes], *[2 + 2 * k for k in axes]).flatten(1 + len(axes))
        return (values * (COLDNESS * values).softmax(-1)).sum(-1)
