"""Content that recurs in images of one class: cues that may stand for the class.

    q(m, i) = min over squares v of image i of |z[m] - z[i](v)|                                         (1)
    g(m, t) = number of images with q < t of the class of m - w * number of those of other classes      (2)
    t[m]    = argmax over t of g(m, t)                                                                  (3)
    z[m]    = mean over images i of the class with q(m, i) < t[m] of their nearest z[i](v), repeated    (4)
    a(m, i) = 1 / (1 + exp(s (q(m, i) / t[m] - 1)))                                                     (5)

z: content of a square, see salient_squares. m: a cue. w: images of the class that one of another class outweighs.
a: whether a cue is in an image, from 0 to 1. Cues begin as the salient squares that the network relies on most.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

OTHERS = 9.0  # w in (2): the nearest images are of the class in nine of ten cases
STEEP = 8.0  # s in (5)
ROUNDS = 3  # of (4)
TRIED = 24, 40  # squares of each class with which cues begin: those with the largest drops, and some of the others
LEAST = 0.05  # share of the class's images that a cue has to add
CUES = 4  # of a class, at most: content that lies differently on the grid of the features looks different


@dataclass(frozen=True)
class Cues:
    """Cues of all classes.

    Attributes:
        label: class of each cue (M,).
        distance: q (M, n).
        cell: number of the nearest square in each image (M, n).
        limit: t (M,).
    """

    label: Tensor
    distance: Tensor
    cell: Tensor
    limit: Tensor

    @property
    def activation(self) -> Tensor:
        """Return (5), (n, M)."""
        return (STEEP * (1 - self.distance / self.limit[:, None])).sigmoid().T

    @property
    def present(self) -> Tensor:
        """Whether each image has each cue, (n, M)."""
        return (self.distance < self.limit[:, None]).T


def nearest_squares(z: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
    """Return (1) for cues (M, D) and contents (n, squares, D), and the number of the nearest square, (M, n) each."""
    distances, cells = [], []
    for part in contents.split(16):
        cross = z @ part.flatten(0, 1).T
        square, cell = ((part**2).sum(2).flatten() - 2 * cross).view(len(z), *part.shape[:2]).min(2)
        distances.append(square)
        cells.append(cell)
    squares = torch.cat(distances, 1) + (z**2).sum(1, keepdim=True)
    return squares.clamp(min=0).sqrt(), torch.cat(cells, 1)


def limits(distance: Tensor, hits: Tensor, weight: float = OTHERS) -> tuple[Tensor, Tensor]:
    """Return (3) of distances (M, n), and the number of images of the class below it, (M,) each.

    >>> t, count = limits(torch.tensor([[0.1, 0.2, 0.8, 0.4]]), torch.tensor([[True, True, True, False]]))
    >>> round(float(t), 2), int(count)
    (0.3, 2)

    Args:
        distance: q (M, n).
        hits: whether the image is of the class of the cue (M, n).
        weight: w.
    """
    order = distance.argsort(1)
    q, hit = distance.gather(1, order), hits.gather(1, order).double()
    gain = (hit - weight * (1 - hit)).cumsum(1)  # (2)
    best, at = gain.max(1)
    after = (at + 1).clamp(max=q.shape[1] - 1)
    t = (q.gather(1, at[:, None]) + q.gather(1, after[:, None]))[:, 0] / 2
    t = torch.where(best > 0, t, 0.0).clamp(min=1e-6)  # (3)
    return t, torch.where(best > 0, hit.cumsum(1).gather(1, at[:, None])[:, 0], 0.0)


def find_cues(contents: Tensor, target: Tensor, cells: Tensor, drops: Tensor) -> Cues:
    """Return cues of each class, those with the largest coverage.

    Args:
        contents: z (n, squares, D).
        target: class of each image (n,).
        cells: numbers of salient squares of each image (n, P).
        drops: how much the network relies on each of them (n, P).
    """
    image, place = _first(target, cells, drops)
    z = contents[image, cells[image, place]]
    distance, _ = nearest_squares(z, contents)
    cues: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for label in target.unique().tolist():
        own, rows = target == label, (target[image] == label).nonzero()[:, 0]
        free = torch.ones_like(own)
        for _ in range(CUES if len(rows) else 0):  # without squares where all maps of a class are constant
            t, _ = limits(distance[rows], own.expand(len(rows), -1))
            count = ((distance[rows] < t[:, None]) & own & free).sum(1)
            best = rows[int(count.argmax())]
            if int(count.max()) < max(2, LEAST * int(own.sum())):
                break
            q, cell, limit = _refine(z[best], contents, own)
            cues.append((label, q, cell, limit))
            free &= q >= limit
    if not cues:
        n = len(target)
        return Cues(target[:0], torch.zeros(0, n), torch.zeros(0, n).long(), torch.zeros(0))
    labels, *columns = zip(*cues)
    return Cues(torch.tensor(labels), *(torch.stack(column) for column in columns))


def _first(target: Tensor, cells: Tensor, drops: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and place of the squares with which cues begin: of each class the largest drops and some others."""
    chosen, (largest, others) = [], TRIED
    for label in target.unique():
        value = drops.masked_fill((target != label)[:, None] | drops.isnan(), -torch.inf).flatten()
        order = value.argsort(descending=True, stable=True)
        order = order[value[order] > -torch.inf]
        rest = order[largest:]
        chosen += [order[:largest], rest[:: max(1, len(rest) // others)]]
    flat = torch.cat(chosen)
    return flat // cells.shape[1], flat % cells.shape[1]


def _refine(z: Tensor, contents: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances, nearest squares and the limit of a cue that moves to the mean of what it covers."""
    best = None
    for _ in range(ROUNDS + 1):
        q, cell = (each[0] for each in nearest_squares(z[None], contents))
        t, count = limits(q[None], own[None])
        if best is None or int(count) > best[0]:
            best = int(count), q, cell, t[0]
        covered = (own & (q < t)).nonzero()[:, 0]
        if not len(covered):
            break
        z = contents[covered, cell[covered]].mean(0)  # (4)
    assert best is not None
    return best[1:]
