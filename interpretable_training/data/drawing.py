"""Outlines of shapes and distractors, as signed distances.

    p        = rotate(pixel - center) / scale            (1)
    coverage = clamp(1/2 - scale d(p), 0, 1)             (2)

d: signed distance to the outline, negative inside, exact near the edges. Scaled to pixels in (2): a pixel
with its center on the outline is half covered. Every shape has the area of the unit circle.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outline = Callable[[Tensor, Tensor], Tensor]

REACH = math.sqrt(4 * math.pi / (3 * math.sqrt(3)))  # farthest point of any shape, in scales: a triangle's corner


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return x.hypot(y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return x.abs().maximum(y.abs()) - math.sqrt(math.pi) / 2


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return (0.5 * y + math.sqrt(0.75) * x.abs()).maximum(-y) - REACH / 2


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to the only edge that is left when symmetry folds the plane into a tenth."""
    wedge, inner = math.pi / 5, 0.45
    outer = math.sqrt(math.pi / (5 * inner * math.sin(wedge)))
    radius, angle = x.hypot(y), wedge - (torch.atan2(y, x).remainder(2 * wedge) - wedge).abs()
    dx, dy = inner * math.cos(wedge) - 1, inner * math.sin(wedge)  # from the tip (angle 0) to the valley
    return ((radius * angle.cos() - outer) * dy - radius * angle.sin() * dx) / math.hypot(dx, dy)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    arm = math.sqrt(9 * math.pi / 20)  # half a bar's length, three times half its width
    x, y = x.abs(), y.abs()
    return x.maximum(y).sub(arm).maximum(x.minimum(y) - arm / 3)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    outer, inner = 1.2, math.sqrt(1.2**2 - 1)
    return (x.hypot(y) - (outer + inner) / 2).abs() - (outer - inner) / 2


def _stick(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() - 1).clamp(min=0).hypot(y)


def _hook(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to half a circle with a stem."""
    tip, stem = (x + 0.45).hypot(y), (x - 0.45).hypot((-y - 1).clamp(min=0))
    return torch.where(y > 0, (x.hypot(y) - 0.45).abs(), tip.minimum(stem))


def _wave(x: Tensor, y: Tensor) -> Tensor:
    height, slope = 0.35 * torch.sin(math.pi * x), 0.35 * math.pi * torch.cos(math.pi * x)
    return ((y - height).abs() / (1 + slope**2).sqrt()).maximum(x.abs() - 1)


def _zigzag(x: Tensor, y: Tensor) -> Tensor:
    teeth = 0.96 * ((1.5 * x - 0.25).remainder(1) - 0.5).abs() - 0.24
    return ((y - teeth).abs() / math.hypot(1, 1.44)).maximum(x.abs() - 1)


SHAPES: dict[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
DISTRACTORS: tuple[Outline, ...] = (_stick, _hook, _wave, _zigzag)  # center lines: all open, thin, of no class


def cover(
    outlines: Sequence[Outline],
    kind: Tensor,
    center: Tensor,
    scale: Tensor,
    angle: Tensor,
    size: tuple[int, int],
    grow: Tensor | float = 0.0,
) -> Tensor:
    """Return the share of each pixel that an outline covers; the kind -1 covers nothing.

    Args:
        outlines: Outlines that `kind` indexes.
        kind: Outline of each image (N,).
        center: Position in pixels, x and y (N, 2).
        scale: Pixels per unit (N,).
        angle: Rotation in radians (N,).
        size: Height and width of the images.
        grow: Pixels by which the outline moves outwards (N,).

    Returns:
        Coverage (N, H, W).
    """
    covered = torch.zeros(len(kind), *size)
    grow = torch.as_tensor(grow).expand(len(kind))
    for index, outline in enumerate(outlines):
        rows = (kind == index).nonzero()[:, 0]
        across, down = (center[rows] - 0.5).T[:, :, None, None]
        across, down = (
            torch.arange(size[1]) - across,
            torch.arange(size[0])[:, None] - down,
        )  # (n, 1, W), (n, H, 1)
        turn, unit = angle[rows, None, None], scale[rows, None, None]
        cos, sin = turn.cos() / unit, turn.sin() / unit
        x, y = cos * across + sin * down, cos * down - sin * across  # (1)
        covered[rows] = (0.5 + grow[rows, None, None] - unit * outline(x, y)).clamp(0, 1)  # (2)
    return covered
