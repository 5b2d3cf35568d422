"""k-means, and the number of clusters by their stability. Arthur and Vassilvitskii, SODA 2007,
https://dl.acm.org/doi/10.5555/1283383.1283494; Hubert and Arabie, Journal of Classification 1985,
https://doi.org/10.1007/BF01908075; Ben-Hur, Elisseeff and Guyon, Pacific Symposium on Biocomputing 2002,
https://doi.org/10.1142/9789812799623_0002

    J       = sum over i of min over k of |x[i] - m[k]|^2                              (1)
    P(next) = |x[i] - nearest m|^2 / sum over j of |x[j] - nearest m|^2                (2)
    R(a, b) = (pairs(a, b) - e) / ((pairs(a) + pairs(b)) / 2 - e),
              e = pairs(a) pairs(b) / pairs of all points                              (3)
    T(k)    = mean over resamples r of R(nearest of m, nearest of m_r)                 (4)

x: points. m: centers; m_r are those of a random share of the points. P: probability to be the next first center.
R: adjusted Rand index, 1 for equal partitions and 0 on average for unrelated ones. pairs(a): pairs of points in one
cluster of a; pairs(a, b): in one cluster of a and in one of b. T: stability of k clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 100  # of k-means, at most
SHARE = 0.7  # of the points in a resample


@dataclass(frozen=True)
class Clustering:
    """Partition of points (n, d): `labels` (n,), `centers` (k, d), the inertia (1) and the stability (4).

    >>> Clustering(torch.tensor([0, 1, 1]), torch.tensor([[0.0], [2.0]]), inertia=0.5).count
    2
    """

    labels: Tensor
    centers: Tensor
    inertia: float
    stability: float = float("nan")

    @property
    def count(self) -> int:
        """Return the number of clusters."""
        return len(self.centers)


def k_means(points: Tensor, count: int, seed: int = 0, restarts: int = 8) -> Clustering:
    """Return the partition of points (n, d) with the lowest inertia (1) of some restarts.

    >>> k_means(torch.tensor([[0.0], [0.2], [5.0], [5.2]]), 2).labels.unique().tolist()
    [0, 1]

    Args:
        points: floats (n, d).
        count: number of clusters, from 1 to the number of different points.
        seed: of the first centers.
        restarts: how often to begin with other first centers.
    """
    if points.ndim != 2 or not len(points) or not bool(points.isfinite().all()):
        raise ValueError(f"expected finite points (n, d), got {tuple(points.shape)}; leave out those that are not.")
    most = len(points.unique(dim=0))
    if not 1 <= count <= most or restarts < 1:
        raise ValueError(
            f"expected 1 to {most} clusters, as many as points differ, and a restart, got {count} and {restarts}."
        )
    generator = torch.Generator().manual_seed(seed)
    x = points.detach().double().cpu()
    runs = [_descend(x, _first_centers(x, count, generator)) for _ in range(restarts)]
    best = min(runs, key=lambda run: run.inertia)
    order = best.labels.bincount(minlength=count).argsort(descending=True, stable=True)  # the largest cluster first
    return Clustering(order.argsort()[best.labels], best.centers[order], best.inertia)


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance of each point to its nearest center, and the number of the center, (n,) each."""
    squares = (points**2).sum(1)[:, None] - 2 * points @ centers.T + (centers**2).sum(1)
    distance, label = squares.clamp(min=0).min(1)
    return distance, label


def _first_centers(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return points as first centers, each drawn by its distance to the centers before."""
    centers = x[torch.randint(len(x), (1,), generator=generator)]
    while len(centers) < count:
        square = (x[:, None] - centers).square().sum(2).amin(1)  # exact, so that a center is never drawn again
        centers = torch.cat([centers, x[torch.multinomial(square, 1, generator=generator)]])  # (2)
    return centers


def _descend(x: Tensor, centers: Tensor) -> Clustering:
    """Assign points and move centers in turn until nothing changes."""
    square, labels = nearest(x, centers)
    for _ in range(STEPS):
        sums = torch.zeros_like(centers).index_add_(0, labels, x)
        counts = labels.bincount(minlength=len(centers))
        centers = sums / counts.clamp(min=1)[:, None]
        for empty in (counts == 0).nonzero()[:, 0].tolist():
            far = int(square.argmax())
            centers[empty], square[far] = x[far], 0
        square, new = nearest(x, centers)
        if torch.equal(new, labels) and bool(counts.all()):
            break
        labels = new
    return Clustering(labels, centers, float(square.sum()))  # (1)


def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """Return the adjusted Rand index (3) of two partitions (n,); 1 for two that put all points together.

    >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    table = contingency(a, b)
    both, rows, columns = (_pairs(counts) for counts in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / max(_pairs(table.sum()), 1)
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)  # (3)


def contingency(a: Tensor, b: Tensor) -> Tensor:
    """Return how many points are in each cluster of `a` and of `b`, (clusters of a, clusters of b)."""
    (names_a, i), (names_b, j) = a.unique(return_inverse=True), b.unique(return_inverse=True)
    return (i * len(names_b) + j).bincount(minlength=len(names_a) * len(names_b)).view(len(names_a), len(names_b))


def _pairs(counts: Tensor) -> float:
    """Return the number of pairs within groups of these sizes."""
    n = counts.double()
    return float((n * (n - 1) / 2).sum())


def stability_of(points: Tensor, clustering: Clustering, seed: int = 0, resamples: int = 10) -> float:
    """Return (4) of a partition of points (n, d)."""
    generator, scores = torch.Generator().manual_seed(seed), []
    for r in range(resamples):
        rows = torch.randperm(len(points), generator=generator)[: max(1, round(SHARE * len(points)))]
        if len(points[rows].unique(dim=0)) < clustering.count:
            scores.append(0.0)
            continue
        other = k_means(points[rows], clustering.count, seed + 1 + r, restarts=4)
        scores.append(adjusted_rand(clustering.labels, nearest(points.double(), other.centers)[1]))
    return sum(scores) / len(scores)  # (4)


def choose_clustering(
    points: Tensor, counts: Sequence[int] = range(2, 9), slack: float = 0.05, seed: int = 0, resamples: int = 10
) -> Clustering:
    """Return the partition with the most clusters among those whose stability is at most `slack` below the best.

    Few clusters of many groups can be as stable as one cluster for each: they hide what is in them.

    >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    >>> choose_clustering(points, counts=[2, 3]).count
    2

    Args:
        points: floats (n, d).
        counts: numbers of clusters to try; those above the number of different points are left out.
        slack: stability that more clusters may lack.
        seed: of the first centers and the resamples.
        resamples: how many random shares of the points are clustered for each count.
    """
    most = len(points.unique(dim=0))
    tried = [k_means(points, count, seed) for count in sorted(counts) if 1 <= count <= most]
    if not tried:
        raise ValueError(f"expected a count from 1 to {most}, as many as points differ, got {list(counts)}.")
    scores = [stability_of(points, clustering, seed, resamples) for clustering in tried]
    last = max(i for i, score in enumerate(scores) if score >= max(scores) - slack)
    chosen = tried[last]
    return Clustering(chosen.labels, chosen.centers, chosen.inertia, scores[last])
