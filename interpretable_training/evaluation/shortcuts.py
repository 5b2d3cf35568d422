"""Find shortcuts of a network: small content that stands for a class, and on which the network relies.

Images are put in clusters by the content under their maps; `image_clusters` says when a cluster is a shortcut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Attribution, explain_prepared, full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model
from interpretable_training.attribution.core.ranges import check_ranges
from interpretable_training.batches.read import Key
from interpretable_training.batches.source import BatchSource, Split

from .cues import Cues, find_cues
from .erased_squares import ErasedSquares
from .image_clusters import ImageCluster, claims, clusters_of, measure_cluster
from .salient_squares import Lattice, drops, highest_squares, probabilities, read_contents, side_of, square_pixels

SQUARES = 3  # of each image with which cues may begin


@dataclass(frozen=True)
class Shortcuts:
    """Clusters of images, the most suspicious first, and the shortcuts among them.

    Attributes:
        clusters: all clusters, by falling score.
        indices: index of each image in the data (n,).
        target: class of each image (n,).
        cluster: number of each image's cluster (n,).
        kind: the same where the cluster is a shortcut and the image holds its content, else -1 (n,).
        corners: upper left corner of the square that shows it, row and column in pixels (n, 2).
        side: of that square, in pixels.
        maps: maps of the images (n, H, W).
    """

    clusters: list[ImageCluster]
    indices: Tensor
    target: Tensor
    cluster: Tensor
    kind: Tensor
    corners: Tensor
    side: int
    maps: Tensor

    @property
    def claimed(self) -> bool:
        """Whether there is a shortcut."""
        return any(cluster.claimed for cluster in self.clusters)

    @property
    def score(self) -> float:
        """Return the highest score of a cluster."""
        return max((cluster.score for cluster in self.clusters), default=0.0)

    @property
    def share(self) -> float:
        """Return the share of the images that hold a shortcut."""
        return float((self.kind >= 0).double().mean())

    def groups(self, target: Tensor | None = None) -> Tensor:
        """Return the pseudo-group of each image (n,): 2 c without and 2 c + 1 with a shortcut, for class c.

        Args:
            target: class of each image (n,); by default the classes with which shortcuts were found.
        """
        classes = self.target if target is None else target.to(self.target)
        if classes.shape != self.kind.shape:
            raise ValueError(f"expected a class for each of {len(self.kind)} images, got {tuple(classes.shape)}.")
        return 2 * classes + (self.kind >= 0)

    def masks(self) -> Tensor:
        """Return the pixels of the square that shows the shortcut, (n, H, W); none in images without one."""
        size = (self.maps.shape[1], self.maps.shape[2])
        return square_pixels(self.corners, self.side, size) & (self.kind >= 0)[:, None, None]

    def erase(self, data: Any, margin: int = 3, image_key: Key = None) -> ErasedSquares:
        """Return the data set in which the shortcuts were found, with the shortcut of a random image in place of each.

        They say nothing about the class then, so that training on it ignores them; no annotation is needed.

        Args:
            data: the data set; for all of its images, search with `max_images=None`.
            margin: pixels around the square that are replaced too.
            image_key: name or index of the image in an item; by default the usual names.
        """
        corners, size = self.corners[self.kind >= 0], self.side + margin
        squares = map(tuple, torch.cat([(corners - margin).clamp(min=0), corners + size], 1).tolist())
        return ErasedSquares(data, dict(zip(self.indices[self.kind >= 0].tolist(), squares)), image_key)

    def describe(self, class_names: list[str] | None = None) -> str:
        """Return in words what was found."""
        claimed = [cluster for cluster in self.clusters if cluster.claimed]
        if not claimed:
            return f"no shortcut found in {len(self.target)} images"
        names = [class_names[c.label] if class_names else f"class {c.label}" for c in claimed]
        first = claimed[0]
        return (
            f"the network uses a shortcut for {', '.join(names)}: {self.share:.0%} of {len(self.target)} images hold a "
            f"small piece of content that recurs in their class, and without it the probability of the class falls by "
            f"{first.reliance:.2f} ({names[0]}: {first.coverage:.0%} of its images, {first.purity:.0%} pure)"
        )


@same_generators()
def find_shortcuts(
    model: nn.Module,
    data: Any,
    method: Attribution = GradCAM(),  # noqa: B008  frozen
    max_images: int | None = 600,
    *,
    split: Split = "val",
    output: Output = None,
    seed: int = 0,
) -> Shortcuts:
    """Find small content that stands for a class and on which the network relies, without any annotation.

    An image costs seven forward passes and what its map costs; all images are kept in memory.

    >>> shortcuts = find_shortcuts(network, (images, target), max_images=4)
    >>> shortcuts.claimed, shortcuts.groups().tolist()
    (False, [0, 2, 0, 2])

    Args:
        model: any classifier of images; it stays as it is.
        data: a data module, a loader, a data set, (images, target) or an iterable of batches.
        method: whose maps say where the network looks; the class of the label is explained, else the predicted one.
        max_images: how many images, chosen by the seed; None takes all. A class needs about 50 for a verdict.
        split: of a data module.
        output: which part of the model's output are the logits.
        seed: of the choice of images and of the clusters.
    """
    check_ranges("find_shortcuts", {"max_images": max_images, "seed": seed}, ["max_images"])
    if not isinstance(method, Attribution):
        raise TypeError(f"expected a method such as GradCAM(), got {method!r:.100}.")
    batches = list(BatchSource(data, max_images, split, seed).read(lambda number: True))
    if not batches:
        raise ValueError("expected at least one image, got none; is the data set or the loader empty?")
    indices = torch.tensor([index for _, part, _, _ in batches for index in part])
    images, targets = [x for _, _, x, _ in batches], [t for _, _, _, t in batches if t is not None]
    device = next((p.device for p in model.parameters()), images[0].device)
    with prepare_model(model, output) as prepared:
        ready = prepare(prepared, torch.cat(images).to(device))
        labels = torch.cat(targets).to(device) if len(targets) == len(batches) else None
        return shortcuts_in(prepared, ready, labels, indices, method, seed)


def shortcuts_in(
    prepared: PreparedModel, images: Tensor, target: Tensor | None, indices: Tensor, method: Attribution, seed: int = 0
) -> Shortcuts:
    """Return what `find_shortcuts` returns, for prepared images (n, C, H, W) and classes (n,), else the predicted."""
    if images.ndim != 4:
        raise ValueError(f"expected images (B, C, H, W) to find shortcuts in, got {tuple(images.shape)}.")
    target = prepared.resolve(images, "pred") if target is None else target  # type: ignore[assignment]
    if target.ndim != 1 or target.is_floating_point():  # type: ignore[union-attr]
        raise ValueError(f"expected one class per image to find shortcuts, got targets {tuple(target.shape)}.")  # type: ignore[union-attr]
    assert isinstance(target, Tensor)
    lattice = Lattice((images.shape[2], images.shape[3]), side_of((images.shape[2], images.shape[3])))
    S = torch.cat(list(_maps(prepared, images, target, method)))
    clean, pred = probabilities(prepared, images, target)
    squares, mass = highest_squares(S, lattice.side, SQUARES)
    d = [drops(prepared, images, target, corners, lattice.side, clean) for corners in squares.unbind(1)]
    contents, label = read_contents(prepared, images, lattice), target.cpu()
    cues = find_cues(contents, label, lattice.cell(squares), torch.stack(d, 1).masked_fill(mass <= 0, torch.nan))
    corners, A = locate(cues, label, squares[:, 0], lattice)
    lost = drops(prepared, images, target, corners, lattice.side, clean)
    clustering = clusters_of(A, seed)
    numbers = {"correct": (pred == label).double(), "loss": -clean.clamp(min=1e-12).log(), "lost": lost}
    clusters = claims([measure_cluster(clustering, i, A, label, numbers, S) for i in range(clustering.count)])
    kind, cluster = torch.full_like(label, -1), torch.full_like(label, -1)
    for each in clusters:
        cluster[each.rows] = each.number
        kind[each.rows] = each.number if each.claimed else -1
    return Shortcuts(clusters, indices, label, cluster, kind, corners, lattice.side, S)


def _maps(prepared: PreparedModel, images: Tensor, target: Tensor, method: Attribution) -> Iterator[Tensor]:
    """Yield raw maps (B, H, W) of parts of the images, on the CPU."""
    parts: list[Tensor] = []

    def run(rows: slice) -> None:
        S = explain_prepared({"": method}, prepared, images[rows], target[rows])[""]
        parts.append(full(S.detach()).nan_to_num(0, 0, 0).cpu())

    in_chunks(run, len(images), None, images)
    yield from parts


def locate(cues: Cues, target: Tensor, highest: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Return the corner of the square of each image (n, 2) that is nearest to a cue of its class, and (1), (n, C).

    Where the class has no cue it is the highest square of the map.
    """
    classes = int(target.max()) + 1
    A, corners = torch.zeros(len(target), classes), highest.clone()
    a = cues.activation
    for c in cues.label.unique().tolist():
        own = (cues.label == c).nonzero()[:, 0]
        A[:, c], best = a[:, own].max(1)  # (1)
        rows = (target == c).nonzero()[:, 0]
        corners[rows] = lattice.corner(cues.cell[own[best[rows]], rows])
    return corners, A
