"""Distance between maps, and the explanation step after which the maps of a panel stay close.

    p = |S| / sum over pixels of |S|                             (1)
    d(S, S') = 1/2 sum over pixels of |p - p'|                   (2)
    D[t] = mean over images of d(S[t], S[t - 1])                 (3)
    stabilization point = min {t < T: D[u] <= delta for u > t}   (4)

S[t]: maps of explanation step t = 0..T. (2) is the share of a map's mass that lies elsewhere in the other map, from 0
to 1. (3) and (4): Dhayalkar, 2026, https://arxiv.org/abs/2601.11625, for tokens of language models. Differs from the
paper: images instead of tokens, and delta is a fixed distance.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .journal import Line

DELTA = 0.1  # a tenth of the mass moves between two steps
Maps = Mapping[str, Tensor]  # id of the image -> map (h, w)


def read_maps(line: Line) -> dict[str, Tensor]:
    """Return id -> map (h, w) of a line of kind "maps", without constant ones and those of damaged files."""
    try:
        with Image.open(line["file"]) as file:
            levels = torch.from_numpy(np.array(file.convert("L"))).double() / 255
        strips = levels.view(len(line["rows"]), line["h"], line["w"])
    except Exception:  # Pillow raises many types for damaged files
        return {}
    maps = {}
    for row, level in zip(line["rows"], strips):
        lo, hi = row["lo"], row["hi"]
        if lo is not None and hi is not None and not row.get("degenerate"):
            maps[str(row["id"])] = lo + level * (hi - lo)
    return maps


def map_distance(S: Tensor, other: Tensor) -> float:
    """Return (2) of two maps (h, w); NaN where one has no mass. A smaller grid is scaled to the larger one.

    >>> map_distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]]))
    0.5
    """
    size = [max(a, b) for a, b in zip(S.shape, other.shape)]
    S, other = (m.abs() if list(m.shape) == size else _resized(m.abs(), size) for m in (S, other))
    return float(moved_mass(S[None], other[None]))


def moved_mass(S: Tensor, other: Tensor) -> Tensor:
    """Return (2) of maps (n, ...) of one size, (n,); NaN where one has no mass.

    >>> moved_mass(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]])).tolist()
    [0.5]
    """
    p, q = (m.abs().flatten(1).double() for m in (S, other))
    p, q = (m / m.sum(1, keepdim=True) for m in (p, q))  # (1)
    return (p - q).abs().sum(1) / 2  # (2)


def _resized(S: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(S[None, None], size, mode="bilinear")[0, 0]


def mean_distance(S: Maps, before: Maps) -> float | None:
    """Return (3) over the images that both steps have; None without one."""
    distances = [map_distance(S[name], before[name]) for name in S if name in before]
    known = [d for d in distances if d == d]
    return sum(known) / len(known) if known else None


def stabilization_point(drift: Sequence[float | None], delta: float = DELTA) -> int | None:
    """Return (4) for D[1], ..., D[T]; None where the last step still changes, or is the only one.

    >>> stabilization_point([0.5, 0.3, 0.04, 0.02])  # the maps of step 2 change by 0.04 and 0.02 afterwards
    2
    """
    point = None
    for t in reversed(range(len(drift))):  # whose map changes by drift[t], that is D[t + 1], until the next step
        change = drift[t]
        if change is None or not change <= delta:  # NaN neither
            break
        point = t
    return point
