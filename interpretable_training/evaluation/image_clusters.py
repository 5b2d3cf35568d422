"""Clusters of images by the content that the network looks at, and which of them are shortcuts.

    clusters = k-means of A, the count by stability, see clusters                                      (1)
    purity   = share of the largest class c in the cluster                                             (2)
    coverage = share of the images of class c that are in the cluster                                  (3)
    J        = coverage - share of the images of other classes that are in the cluster                 (4)
    reliance = mean over images of class c in the cluster of d, the probability lost without the cue   (5)
    score    = T * purity * max(0, J) * min(1, max(0, reliance) / 0.1)                                 (6)

A: activation of each class's cues in each image (n, C), see cues. d: see salient_squares. T: stability of the clusters.

A cluster is a shortcut if its purity is at least 0.9, its coverage at least 0.4 and its reliance at least 0.1; once
one is, purity 0.8, coverage 0.15 and reliance 0.01 make the others shortcuts too. Content is compared in squares of an
eighth of the image by colors, contrasts and features of the finest layer, so that objects whose size, color or pose
varies hardly recur. A detail or a texture that every object of a class has counts as a shortcut too: look at the
pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .clusters import Clustering, choose_clustering, k_means

FIRST = (0.9, 0.4, 0.1)  # purity, coverage and reliance of the first shortcut of a network
OTHER = (0.8, 0.15, 0.01)  # and of the others
FULL = 0.1  # reliance above which the score does not rise
MOST = 24  # clusters
LEAST = 5  # images of a shortcut
SLACK = 0.05  # of stability


@dataclass(frozen=True)
class ImageCluster:
    """Images with the same content under their maps.

    Attributes:
        number: of the cluster.
        rows: its images, those with the highest activation first; places in the tensors of `Shortcuts`.
        label: the largest class.
        shares: share of each class in the cluster (C,).
        purity: (3).
        coverage: (4).
        informedness: (4).
        reliance: (5); NaN where no image of the class is in the cluster.
        stability: of the clustering.
        score: (6).
        accuracy: share of its images that are predicted right.
        loss: their mean cross-entropy.
        mean_map: mean of their maps, each scaled to a maximum of 1, (h, w).
        claimed: whether it is called a shortcut.
    """

    number: int
    rows: Tensor
    label: int
    shares: Tensor
    purity: float
    coverage: float
    informedness: float
    reliance: float
    stability: float
    score: float
    accuracy: float
    loss: float
    mean_map: Tensor
    claimed: bool = False

    def facts(self) -> dict[str, float]:
        """Return the numbers of the cluster by name."""
        names = ("purity", "coverage", "informedness", "reliance", "stability", "score", "accuracy", "loss")
        return {"members": float(len(self.rows)), **{name: getattr(self, name) for name in names}}


def clusters_of(activation: Tensor, seed: int = 0) -> Clustering:
    """Return the most stable partition of activations A (n, C), with at most a cluster for each class and one more.

    >>> clusters_of(torch.eye(2).repeat_interleave(5, 0)).count
    2
    """
    used = int((activation.amax(0) > 0.5).sum())
    points = activation.double()
    if used == 0 or len(points.unique(dim=0)) < 2:
        return k_means(points, 1, seed)
    return choose_clustering(points, range(2, min(used + 1, MOST) + 1), SLACK, seed)  # (1)


def measure_cluster(
    clustering: Clustering,
    number: int,
    activation: Tensor,
    target: Tensor,
    numbers: Mapping[str, Tensor],
    saliency: Tensor,
) -> ImageCluster:
    """Return a cluster with its numbers, not claimed yet.

    Args:
        clustering: of the images.
        number: of the cluster.
        activation: A (n, C).
        target: class of each image (n,).
        numbers: `correct`, `loss` and `lost` probability of each image (n,).
        saliency: maps (n, H, W).
    """
    inside = clustering.labels == number
    counts, sizes = (t.bincount(minlength=activation.shape[1]).double() for t in (target[inside], target))
    c = int(counts.argmax())
    own, members = target == c, inside.nonzero()[:, 0]
    purity, coverage = float(counts[c] / counts.sum()), float(counts[c] / sizes[c])  # (2), (3)
    others = float((counts.sum() - counts[c]) / (sizes.sum() - sizes[c]).clamp(min=1))
    reliance = float(numbers["lost"][inside & own].double().mean())  # (5)
    T = 0.0 if math.isnan(clustering.stability) else clustering.stability
    score = T * purity * max(0.0, coverage - others) * min(1.0, max(0.0, reliance) / FULL)  # (4), (6)
    tops = saliency[members].amax((1, 2), keepdim=True)
    order = activation[members, c].argsort(descending=True, stable=True)
    return ImageCluster(
        number=number,
        rows=members[order],
        label=c,
        shares=counts / counts.sum(),
        purity=purity,
        coverage=coverage,
        informedness=coverage - others,
        reliance=reliance,
        stability=T,
        score=score,
        accuracy=float(numbers["correct"][inside].mean()),
        loss=float(numbers["loss"][inside].mean()),
        mean_map=(saliency[members].clamp(min=0) / torch.where(tops > 0, tops, 1)).mean(0),
    )


def claims(clusters: Sequence[ImageCluster]) -> list[ImageCluster]:
    """Return clusters by falling score, those that are shortcuts claimed."""
    large = [cluster for cluster in clusters if len(cluster.rows) >= LEAST]
    first, others = ([c for c in large if _reaches(c, limits)] for limits in (FIRST, OTHER))
    named = {cluster.number for cluster in others} if first else set()
    ordered = sorted(clusters, key=lambda cluster: -cluster.score)
    return [replace(cluster, claimed=cluster.number in named) for cluster in ordered]


def _reaches(cluster: ImageCluster, limits: tuple[float, float, float]) -> bool:
    """Whether purity, coverage and reliance of a cluster are at least as high as limits; a missing one is not."""
    numbers = cluster.purity, cluster.coverage, cluster.reliance
    return all(number >= limit for number, limit in zip(numbers, limits))
