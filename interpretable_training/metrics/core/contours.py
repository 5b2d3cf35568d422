"""Contours of masks and boxes around them. Suzuki & Abe, CVGIP 1985, as OpenCV finds them; for many masks at once.

    F       = all pixels but those that side neighbors outside of the mask join with the image's frame    (1)
    area    = squares of four neighboring pixels of F, and half of those that lack one of the four        (2)
    holes   = pixels of F that are not in the mask, joined by side neighbors                              (3)

A contour runs through the middles of pixels, so that a line encloses nothing. Outer contours surround components whose
pixels may touch at corners. The contour of a hole runs through the pixels of the mask around it. (2) is the area inside
of an outer contour, holes included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.components import Runs, find_runs, first_runs


def contour_boxes(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes (M, 4) around all contours of masks (N, H, W), and the mask (M,) that each belongs to.

    Boxes are x1, y1 and x2, y2 just outside.
    """
    outer, inner = find_runs(mask, 8), find_runs(~mask.bool(), 4)
    H, W = mask.shape[1:]
    components, holes = first_runs(outer), first_runs(inner)
    around, within = outer.boxes()[components], inner.boxes()[holes]
    enclosed = (within[:, :2] > 0).all(1) & (within[:, 2] < W) & (within[:, 3] < H)  # (3)
    holes, within = holes[enclosed], within[enclosed] + within.new_tensor([-1, -1, 1, 1])
    return torch.cat([outer.image[components], inner.image[holes]]), torch.cat([around, within]).float()


def largest_contour_boxes(mask: Tensor) -> Tensor:
    """Return the box (N, 4) around the contour with the largest area, of equals the last; NaN of empty masks (N, H, W).

    Contours inside of others enclose less, so that only the outermost ones are compared.
    """
    whole = filled(mask)
    runs = find_runs(whole, 8)
    first, R = first_runs(runs), len(runs.row)
    key = enclosed_areas(whole, runs)[first] * (R + 1) + first + 1
    best = (key.new_zeros(len(mask)).scatter_reduce_(0, runs.image[first], key, "amax")) % (R + 1)
    none = best == 0
    if not R:
        return torch.full((len(mask), 4), torch.nan, device=mask.device)
    return runs.boxes()[(best - 1).clamp(min=0)].float().masked_fill(none[:, None], torch.nan)


def filled(mask: Tensor) -> Tensor:
    """Return F (1) of masks (N, H, W)."""
    around = F.pad(~mask.bool(), (1, 1, 1, 1), value=True)
    runs = find_runs(around, 4)
    frame = torch.searchsorted(runs.image, torch.arange(len(mask), device=mask.device))  # its runs come first
    outside = runs.parent == frame[runs.image]
    around[around.clone()] = outside.repeat_interleave(runs.last - runs.first)
    return ~around[:, 1:-1, 1:-1]


def enclosed_areas(whole: Tensor, runs: Runs) -> Tensor:
    """Return twice the area (2) inside of the component of which each run is the first, (R,)."""
    label = torch.full(whole.shape, -1, device=whole.device)
    label[whole] = runs.parent.repeat_interleave(runs.last - runs.first)
    corners = torch.stack([label[:, y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)])
    halves = ((corners >= 0).sum(0) - 2).clamp(min=0)  # 2 of four, 1 of three
    counted = halves > 0
    return torch.zeros_like(runs.first).index_add_(0, corners.amax(0)[counted], halves[counted])
