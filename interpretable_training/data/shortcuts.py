"""Shortcut cues: which images get one, and small marks that name the class, like a hospital's stamp on its X-rays.

A mark is a black frame around 3 x 3 cells, each white or in the dark color of the class: the color gives
the class away and, in gray images, the pattern does.
"""

from typing import Literal

import torch
from torch import Tensor

from .base import at_least

CueSplit = Literal["same", "none", "swapped"]  # cues of validation and test images

# Five of nine cells each; any two patterns differ in at least four.
PATTERNS = torch.tensor(
    [
        [[1, 1, 1], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 0], [1, 0, 0], [1, 1, 1]],
        [[0, 1, 0], [1, 1, 0], [0, 1, 1]],
        [[1, 0, 1], [1, 0, 1], [0, 1, 0]],
        [[1, 1, 0], [0, 0, 1], [0, 1, 1]],
        [[0, 0, 1], [1, 1, 1], [0, 0, 1]],
    ]
).bool()
COLORS = torch.tensor(
    [[210, 20, 20], [20, 60, 230], [0, 130, 30], [150, 0, 170], [180, 90, 0], [0, 120, 140]],
    dtype=torch.uint8,
)
TRIES = 16  # random places per mark before one along an edge is taken


def frame_and_cell(size: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels of a mark's frame and of the side of its cells."""
    frame = max(1, min(size) // 80)
    return frame, max(1, round((min(size) / 8 - 2 * frame) / 3))


def side_of_mark(size: tuple[int, int]) -> int:
    """Return the side of a mark in pixels: 5, or about an eighth of the image's shorter side."""
    frame, cell = frame_and_cell(size)
    return 2 * frame + 3 * cell


def draw_marks(size: tuple[int, int]) -> Tensor:
    """Return the mark of each class for images of one size, uint8 (classes, 3, m, m)."""
    frame, cell = frame_and_cell(size)
    marks = torch.zeros(len(COLORS), 3, side_of_mark(size), side_of_mark(size), dtype=torch.uint8)
    cells = PATTERNS.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, None]
    marks[:, :, frame:-frame, frame:-frame] = COLORS[:, :, None, None].where(cells, torch.tensor(255).byte())
    return marks


def check_cues(shortcut: float, shortcut_val: str, annotated: float) -> None:
    """Refuse shares outside of [0, 1] and unknown names."""
    if not 0 <= shortcut <= 1:
        raise ValueError(
            f"expected shortcut as a share of images between 0 and 1, got {shortcut}; "
            "pass 0.0 for no shortcut or 1.0 for one in every image."
        )
    if shortcut_val not in ("same", "none", "swapped"):
        raise ValueError(f"expected shortcut_val 'same', 'none' or 'swapped', got {shortcut_val!r}; pass one of them.")
    if not 0 <= annotated <= 1:
        raise ValueError(
            f"expected annotated as a share of images between 0 and 1, got {annotated}; "
            "pass 1.0 for a mask and a box of every training image."
        )


def check_repeats(repeat_annotated: int, annotations: bool) -> None:
    """Refuse numbers of repeats that are no number, or without effect."""
    at_least(1, repeat_annotated=repeat_annotated)
    if repeat_annotated > 1 and not annotations:
        raise ValueError(
            f"expected annotations=True with repeat_annotated={repeat_annotated}, got annotations=False; pass both."
        )


def repeat_rows(tensors: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Return tensors with the rows of images that have a mask repeated; the others come first, once."""
    if times == 1:
        return tensors
    known = tensors["mask"].flatten(1).any(1).nonzero()[:, 0]
    rows = torch.cat([torch.arange(len(tensors["mask"])), known.repeat(times - 1)])
    return {name: values[rows] for name, values in tensors.items()}


def draw_cues(
    label: Tensor, kinds: int, share: float, wrong: bool, generator: torch.Generator, n: int | None = None
) -> Tensor:
    """Return the kind of cue of each image (N,); `kinds` stands for none.

    Args:
        label: Class of each (N,); cue c belongs to class c.
        kinds: Number of classes, and of cues.
        share: Share of images that get a cue; a larger share adds cues and changes none.
        wrong: Whether to choose the cue of a random other class.
        generator: Drawn from in the same way whatever the other arguments are.
        n: Number of images, N or more, that random numbers are drawn for; by default N.
    """
    n, N = len(label) if n is None else n, len(label)
    lucky = torch.rand(n, generator=generator)[:N] < share
    other = (label + torch.randint(1, kinds, (n,), generator=generator)[:N]) % kinds
    return (other if wrong else label).where(lucky, kinds)


def plant(images: Tensor, cue: Tensor, boxes: Tensor, generator: torch.Generator, chunk: int) -> Tensor:
    """Draw marks onto images, away from the object.

    Args:
        images: Pictures, uint8 RGB (N, 3, H, W); changed in place.
        cue: Class that the mark of each names (N,), or the number of classes for no mark.
        boxes: Box of each object (N, 4).
        generator: Drawn from in the same way whatever the other arguments are.
        chunk: Number of images, N or more, that random numbers are drawn for.

    Returns:
        The pixels of the marks, bool (N, H, W).
    """
    n, _, height, width = images.shape
    marks = draw_marks((height, width))
    m = marks.shape[-1]
    corners = choose_corners(boxes, torch.rand(chunk, TRIES + 4, 2, generator=generator)[:n], (height, width), m)
    planted = torch.zeros(n, height, width, dtype=torch.bool)
    for i in (cue < len(marks)).nonzero()[:, 0].tolist():
        y, x = corners[i].tolist()
        images[i, :, y : y + m, x : x + m] = marks[cue[i]]
        planted[i, y : y + m, x : x + m] = True
    return planted


def choose_corners(boxes: Tensor, where: Tensor, size: tuple[int, int], m: int) -> Tensor:
    """Return upper left corners (N, 2), y and x: the first place that leaves a pixel between mark and box."""
    # The last four places lie along the four edges; scenes leave room for a mark at one of them.
    for edge, (axis, end) in enumerate([(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]):
        where[:, TRIES + edge, axis] = end
    corners = (where * (torch.tensor(size) - m + 1)).long().minimum(torch.tensor(size) - m)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (N, 1)
    y, x = corners.unbind(2)
    apart = (y + m < y1) | (y > y2) | (x + m < x1) | (x > x2)
    return corners[torch.arange(len(boxes)), apart.int().argmax(1)]
