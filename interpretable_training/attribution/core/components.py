"""Connected components of masks, and boxes around them, for many masks at once on any device.

A run is a stretch of neighboring pixels of a row. Runs that touch in neighboring rows are joined:

    parent[a] = b    for touching runs a > b that are their own parents    (1)
    parent[a] = parent[parent[a]]    until nothing changes                 (2)

(1) and (2) are repeated until all that touch have the same parent: the first run of their component, row by row. Runs
are far fewer than pixels, so that this takes little longer than to find them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 2**21  # pixels, so that what is looked at several times stays in the cache


@dataclass(frozen=True)
class Runs:
    """Runs of masks (N, H, W), row by row, and the components that they form.

    image, row: of each run. first, last: its columns, from `first` up to but without `last`. parent: number of the
    first run of its component. All (R,).
    """

    shape: tuple[int, int, int]
    image: Tensor
    row: Tensor
    first: Tensor
    last: Tensor
    parent: Tensor

    def areas(self) -> Tensor:
        """Return the pixels (R,) of the component of which each run is the first; 0 for the others."""
        return torch.zeros_like(self.first).index_add_(0, self.parent, self.last - self.first)

    def largest(self) -> Tensor:
        """Return for each image (N,) the first run of its largest component, of equals the first; R without any."""
        R = len(self.row)
        key = self.areas() * (R + 1) + torch.arange(R, 0, -1, device=self.row.device)
        best = key.new_zeros(self.shape[0]).scatter_reduce_(0, self.image, key, "amax")
        return torch.where(best > 0, R - best % (R + 1), R)

    def boxes(self) -> Tensor:
        """Return boxes (R, 4) around the component of which each run is the first; meaningless for the others."""
        R, at = len(self.row), self.parent
        sides = [
            side.new_zeros(R).scatter_reduce_(0, at, side, how, include_self=False)
            for side, how in ((self.first, "amin"), (self.row, "amin"), (self.last, "amax"), (self.row + 1, "amax"))
        ]
        return torch.stack(sides, 1)


def connected_components(mask: Tensor, connectivity: int = 4) -> Tensor:
    """Number the components of each mask (N, H, W) from 1, in the order of their first pixels; 0 is outside.

    >>> connected_components(torch.tensor([[[1, 0, 1], [1, 0, 0]]]))
    tensor([[[1, 0, 2],
             [1, 0, 0]]])
    """
    if not isinstance(mask, Tensor) or mask.ndim != 3:
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"expected mask (N, H, W) as a tensor, got {got}.")
    labels = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    for i, single in enumerate(mask.bool()):
        runs = find_runs(single[None], connectivity)
        number = runs.parent.unique(return_inverse=True)[1] + 1
        labels[i][single] = number.repeat_interleave(runs.last - runs.first)
    return labels


def largest_boxes(mask: Tensor, connectivity: int = 4) -> Tensor:
    """Return the box (N, 4) around the largest component of each mask (N, H, W), of equals the first; else NaN.

    Boxes are x1, y1 and x2, y2 just outside.
    """
    step = max(1, AT_ONCE // max(1, mask[0].numel())) if len(mask) else 1
    parts = [_largest_boxes(part, connectivity) for part in mask.split(step)]
    return torch.cat(parts) if parts else torch.zeros(0, 4, device=mask.device)


def boxes_around(mask: Tensor) -> Tensor:
    """Return the box (N, 4) around all pixels of each mask (N, H, W); NaN of empty ones."""
    x, y = mask.any(1).byte(), mask.any(2).byte()
    x2, y2 = x.shape[1] - x.flip(1).argmax(1), y.shape[1] - y.flip(1).argmax(1)
    boxes = torch.stack([x.argmax(1), y.argmax(1), x2, y2], 1).float()
    return boxes.masked_fill(~x.bool().any(1, keepdim=True), torch.nan)


def _largest_boxes(mask: Tensor, connectivity: int) -> Tensor:
    runs = find_runs(mask, connectivity)
    R, largest = len(runs.row), runs.largest()
    component = runs.parent == largest[runs.image]
    image = runs.image[component]
    boxes = torch.full((len(mask), 4), torch.nan, device=mask.device)
    for side, (values, how) in enumerate(
        ((runs.first, "amin"), (runs.row, "amin"), (runs.last, "amax"), (runs.row + 1, "amax"))
    ):
        values = values[component].to(boxes)
        boxes[:, side] = boxes[:, side].scatter_reduce(0, image, values, how, include_self=False)
    return boxes.masked_fill((largest == R)[:, None], torch.nan)


def find_runs(mask: Tensor, connectivity: int = 4) -> Runs:
    """Return the runs of masks (N, H, W) and their components."""
    if connectivity not in (4, 8):
        raise ValueError(f"expected connectivity 4 or 8, got {connectivity}.")
    M = mask.bool()
    N, H, W = M.shape
    begins, ends = M.clone(), M.clone()
    begins[:, :, 1:] &= ~M[:, :, :-1]
    ends[:, :, :-1] &= ~M[:, :, 1:]
    first, last = (edges.flatten().nonzero()[:, 0] for edges in (begins, ends))
    row = first.div(W, rounding_mode="floor")
    image = row.div(H, rounding_mode="floor")
    number = begins.flatten().cumsum(0, dtype=torch.int32) - 1  # of the run that each pixel belongs to
    touching = M[:, 1:] & M[:, :-1] & (begins[:, 1:] | begins[:, :-1])  # where two begin to lie below each other
    pairs = [(touching, 0, 0)]
    if connectivity == 8:  # beside each other at a corner: where one begins, the other has just ended
        up, down = M[:, :-1], M[:, 1:]
        pairs.append((begins[:, 1:, 1:] & ends[:, :-1, :-1] & ~up[:, :, 1:], 0, 1))
        pairs.append((begins[:, :-1, 1:] & ends[:, 1:, :-1] & ~down[:, :, 1:], 1, 0))
    low, high = [], []
    for where, up_shift, down_shift in pairs:
        n, y, x = where.nonzero(as_tuple=True)
        upper = (n * H + y) * W + x
        lower = upper + W
        if where.shape[2] < W:  # columns counted from the second on
            upper, lower = upper + 1 - down_shift, lower + 1 - up_shift
        low.append(number[upper])
        high.append(number[lower])
    parent = join_runs(len(first), torch.cat(low).long(), torch.cat(high).long())
    start = row * W
    return Runs((N, H, W), image, row - image * H, first - start, last - start + 1, parent)


def first_runs(runs: Runs) -> Tensor:
    """Return the first run of each component."""
    return (runs.parent == torch.arange(len(runs.parent), device=runs.parent.device)).nonzero()[:, 0]


def join_runs(count: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest number (count,) of the runs that edges from `low` to `high` connect with each run."""
    parent = torch.arange(count, device=low.device)
    while len(low):
        parent[high] = low  # (1); of several any one will do, since numbers only fall
        while True:
            grandparent = parent[parent]
            if torch.equal(grandparent, parent):
                break
            parent = grandparent  # (2)
        low, high = parent[low], parent[high]
        apart = low != high
        low, high = torch.minimum(low[apart], high[apart]), torch.maximum(low[apart], high[apart])
    return parent
