"""Scenes of one labeled object among distractors: their parameters, and how they are rendered.

    image = coverage color + (1 - coverage) image    (1)

Nothing but the outline depends on the class: place, scale, rotation and colors are drawn alike for all.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawing import DISTRACTORS, REACH, SHAPES, cover

SLOTS = 4  # places for distractors, of which 2 to 4 are taken
TRIES = 12  # colors, or positions, to choose from
LUMA = torch.tensor([0.299, 0.587, 0.114])
BLACK_AND_WHITE = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


@dataclass(frozen=True)
class Scene:
    """Parameters of N images; lengths in pixels, slot 0 is the object and the others are distractors."""

    label: Tensor  # (N,)
    center: Tensor  # (N, 1 + SLOTS, 2), x and y
    scale: Tensor  # (N, 1 + SLOTS)
    angle: Tensor  # (N, 1 + SLOTS)
    distractor: Tensor  # (N, SLOTS), index into DISTRACTORS or -1 for none
    thickness: Tensor  # (N, SLOTS), half of it
    colors: Tensor  # (N, 1 + SLOTS, TRIES, 3), in the order in which they are tried
    background: Tensor  # (N, 3, h, w), a coarse grid
    noise: Tensor  # (N, 1, H, W)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice) -> "Scene":
        return Scene(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_scenes(n: int, size: tuple[int, int], room: int, generator: torch.Generator) -> Scene:
    """Return random scenes; on one side of each object's bounding box `room` pixels stay free."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    side, classes, slots = min(size), len(SHAPES), 1 + SLOTS
    # Each class once in every six images, so that any beginning of a split is balanced.
    label = torch.rand(-(-n // classes), classes, generator=generator).argsort(1).flatten()[:n]
    scale = torch.cat([uniform(0.135, 0.2, 1), uniform(0.11, 0.18, SLOTS)], 1) * side
    center = place_object(uniform(0, 1, 2), REACH * scale[:, :1], size, room)
    count = torch.randint(2, SLOTS + 1, (n, 1), generator=generator)
    kind = torch.randint(len(DISTRACTORS), (n, SLOTS), generator=generator)
    return Scene(
        label=label,
        center=place_distractors(center, uniform(0.05, 0.95, SLOTS, TRIES, 2) * torch.tensor(size[::-1])),
        scale=scale,
        angle=uniform(0, 2 * math.pi, slots),
        distractor=kind.where(torch.arange(SLOTS) < count, -1),
        thickness=(uniform(0.012, 0.022, SLOTS) * side).clamp(min=0.65),
        colors=hsv_to_rgb(uniform(0, 1, slots, TRIES), uniform(0.3, 1, slots, TRIES), uniform(0.2, 1, slots, TRIES)),
        background=draw_background(n, size, generator),
        noise=0.015 * torch.randn(n, 1, *size, generator=generator),
    )


def place_object(where: Tensor, reach: Tensor, size: tuple[int, int], room: int) -> Tensor:
    """Return centers (N, 2) for positions in [0, 1] that keep the object inside the image."""
    extent = torch.tensor(size[::-1])
    center = reach + where * (extent - 2 * reach)
    free = torch.cat([center, extent - center], 1).amax(1, keepdim=True) - reach
    # Only in small images an object in the middle leaves no room for a mark: it moves to the nearest edge.
    edge = torch.where(where < 0.5, reach, extent - reach)
    nearest = F.one_hot((where - 0.5).abs().argmax(1), 2).bool()
    return torch.where((free < room) & nearest, edge, center)


def place_distractors(center: Tensor, tries: Tensor) -> Tensor:
    """Return centers (N, 1 + SLOTS, 2): the object's and, of each slot's tries, the farthest from all before."""
    taken = center[:, None]
    for slot in tries.unbind(1):
        best = torch.cdist(slot, taken).amin(2).argmax(1)
        taken = torch.cat([taken, slot[torch.arange(len(slot)), best][:, None]], 1)
    return taken


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return colors with a last dimension of 3, everything in [0, 1]."""
    sector = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[..., None]).remainder(6)
    return value[..., None] * (1 - saturation[..., None] * sector.minimum(4 - sector).clamp(0, 1))


def draw_background(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return one color per image, varied by grids of 2, 4 and 8 cells along the shorter side (N, 3, h, w)."""
    hue, saturation, value = torch.rand(3, n, generator=generator)
    colors = hsv_to_rgb(hue, 0.7 * saturation, 0.25 + 0.65 * value)[:, :, None, None]
    for cells, strength in ((2, 0.16), (4, 0.12), (8, 0.08)):
        height, width = (1 + -(-cells * length // min(size)) for length in size)
        finer = torch.rand(n, 3, height, width, generator=generator) * 2 - 1
        colors = F.interpolate(colors, (height, width), mode="bilinear", align_corners=True) + strength * finer
    return colors.clamp(0, 1)


def render(scene: Scene) -> tuple[Tensor, Tensor]:
    """Return pictures as uint8 RGB (N, 3, H, W) and the pixels of the objects as bool (N, H, W)."""
    height, width = scene.noise.shape[-2:]
    size = (height, width)
    images = F.interpolate(scene.background, size, mode="bilinear", align_corners=True)
    average = images.mean((2, 3))
    for slot in range(1, 1 + SLOTS):
        shape = scene.center[:, slot], scene.scale[:, slot], scene.angle[:, slot]
        lines = cover(DISTRACTORS, scene.distractor[:, slot - 1], *shape, size, scene.thickness[:, slot - 1])
        paint(images, lines, contrasting(scene.colors[:, slot], average))
    shape = scene.center[:, 0], scene.scale[:, 0], scene.angle[:, 0]
    # The background is averaged over a disk, so that the object's color does not depend on its class.
    disk = cover([lambda x, y: x.hypot(y) - REACH], torch.zeros_like(scene.label), *shape, size)
    behind = torch.einsum("nchw,nhw->nc", images, disk) / disk.sum((1, 2))[:, None]
    covered = cover(list(SHAPES.values()), scene.label, *shape, size)
    paint(images, covered, contrasting(scene.colors[:, 0], behind))
    return images.add_(scene.noise).clamp_(0, 1).mul_(255).round_().byte(), covered > 0.5


def paint(images: Tensor, coverage: Tensor, colors: Tensor) -> None:
    """Paint the covered part in one color (N, 3) per image, in place."""
    images += coverage[:, None] * (colors[:, :, None, None] - images)  # (1)


def contrasting(colors: Tensor, background: Tensor) -> Tensor:
    """Return the first of the colors (N, K, 3) that stands out from the background (N, 3), also in gray."""
    # Black or white, at least half the gray scale away, always does.
    colors = torch.cat([colors, BLACK_AND_WHITE.expand(len(colors), 2, 3)], 1)
    difference = colors - background[:, None]
    stands_out = ((difference @ LUMA).abs() > 0.22) & (difference.norm(dim=2) > 0.45)
    return colors[torch.arange(len(colors)), stands_out.int().argmax(1)]
