"""The panel: the images that are explained, the same in every epoch and every run of a sweep."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.state import same_state
from interpretable_training.attribution.core.state_undo import dotted
from interpretable_training.batches.read import pick
from interpretable_training.batches.source import again, indices_of
from interpretable_training.callbacks.watching._compat import tree_leaves
from interpretable_training.callbacks.watching.options import WatchOptions

READ_PER_IMAGE = 4  # items read for each image wanted, where labels are only known by reading


@dataclass(frozen=True)
class Panel:
    """Images that are explained in each step, as batches of the project's loader.

    Attributes:
        ids: index of each image in its data set.
        batches: as the loader collates them, on the CPU; in the order of `ids`.
        source: where they are from, in words.
        ready: whether they have been through the project's hooks for moving a batch to the device.
        alone: whether this process has all images.
        prefix: of the images' names, where they are not of the data set that is validated.
        dataset: of which they are, where it is known.
    """

    ids: list[int]
    batches: list[Any]
    source: str
    ready: bool = False
    alone: bool = False
    prefix: str = ""
    dataset: Any = None


@contextmanager
def seeded(seed: int, *sources: Any) -> Iterator[None]:
    """Draw random numbers from the seed alone inside the block, and restore all state afterwards.

    Args:
        seed: of the global generators and of those that the sources hold.
        sources: data sets, functions and modules that run inside; their state is put back too.
    """
    with same_generators(), same_state(*sources) as state:
        if state.iterators and any(isinstance(source, Dataset) for source in sources):
            place = dotted(state.iterators[0][2])
            raise ValueError(
                f"expected a data set that can be read without changing it, got an iterator at {place!r} whose "
                "position cannot be put back; pass images= with a function that returns a batch."
            )
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        state.seed(seed)
        state.runs = False
        yield


def choose_panel(loader: DataLoader, options: WatchOptions, rank: int = 0, world: int = 1, prefix: str = "") -> Panel:
    """Choose images of a loader's data set, as many of each class, and return those of one rank.

    Labels are taken from the data set's list of them; where it has none, a few items are read. The classes take turns,
    so that the first images are balanced too.
    """
    index, seed, n = indices_of(loader), options.seed, options.count
    assert index is not None, "asked before"
    order = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))].tolist()
    with seeded(seed, loader.dataset):
        labels = known_labels(loader.dataset)
    if labels is None and n < len(order):
        labels = read_labels(loader, order[: READ_PER_IMAGE * n], options)
    chosen = balanced(order, labels, n)
    panel = read_panel(loader, chosen[rank::world], f"{len(chosen)} of {len(order)} images, seed {seed}", seed)
    return replace(panel, prefix=prefix, dataset=loader.dataset)


def read_panel(loader: DataLoader, ids: Sequence[int], source: str, seed: int) -> Panel:
    """Read the images of given indices in the loader's batches; their random transforms are drawn by the seed."""
    size = loader.batch_size or 32
    parts = [list(ids[i : i + size]) for i in range(0, len(ids), size)]
    batches = read(loader, parts, seed)
    if parts and not repeats(batches[0], read(loader, [parts[0][:1]], seed)[0]):
        source += "; the data set draws them anew each time, so that other runs show other pictures of them"
    return Panel(list(ids), batches, source)


def read(loader: DataLoader, parts: list[list[int]], seed: int) -> list[Any]:
    """Return batches of given indices; the data set and the collate function stay as they were."""
    with seeded(seed, loader.dataset, loader.collate_fn, loader.worker_init_fn):
        return list(again(loader, parts)) if parts else []


def repeats(batch: Any, first: Any) -> bool:
    """Whether reading the first item alone gives the first row of the batch again."""
    a, b = (tree_leaves(each) for each in (batch, first))
    pairs = [(x[:1], y) for x, y in zip(a, b) if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim]
    return len(a) != len(b) or all(torch.equal(x, y) for x, y in pairs if x.shape == y.shape)


def known_labels(dataset: Any) -> dict[int, int] | None:
    """Return index -> class, where the data set has a list of its labels, as those of torchvision have."""
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else {i: inner[j] for i, j in enumerate(dataset.indices) if j in inner}
    tensors = getattr(dataset, "tensors", None)
    lists: list[Any] = [getattr(dataset, name, None) for name in ("targets", "labels", "y")]
    if isinstance(tensors, dict):
        lists.append(tensors.get("target"))
    elif isinstance(tensors, (tuple, list)):
        lists += tensors[1:]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], (tuple, list)) and len(samples[0]) == 2:
        lists.append([sample[1] for sample in samples])
    for labels in lists:
        if isinstance(labels, (list, tuple, Tensor)) and len(labels) == len(dataset):
            try:
                values = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError):
                continue
            if values.ndim == 1 and not values.is_floating_point():
                return dict(enumerate(values.tolist()))
    return None


def read_labels(loader: DataLoader, ids: list[int], options: WatchOptions) -> dict[int, int] | None:
    """Return index -> class of the items `ids` by reading them; None where they have no single label."""
    labels: dict[int, int] = {}
    for part, start in zip(read_panel(loader, ids, "", options.seed).batches, count(0, loader.batch_size or 32)):
        try:
            target = pick(part, options.image_key, options.label_key).target
        except (TypeError, KeyError):  # a batch that the project's hooks make readable
            return None
        if target is None or target.ndim != 1:
            return None
        labels.update(zip(ids[start : start + len(target)], target.tolist()))
    return labels


def balanced(order: list[int], labels: dict[int, int] | None, n: int) -> list[int]:
    """Return the first `n` of an order; the classes take turns."""
    if labels is None:
        return order[:n]
    groups: dict[int, list[int]] = {}
    for index in order:
        if index in labels:
            groups.setdefault(labels[index], []).append(index)
    turns = sorted(
        (turn, place, index) for place, group in enumerate(groups.values()) for turn, index in enumerate(group[:n])
    )
    return [index for _, _, index in turns[:n]]


def first_loader(loaders: Any) -> DataLoader | None:
    """Return the first loader of what a Trainer holds: one, or a list or dict of them."""
    if isinstance(loaders, DataLoader):
        return loaders
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return next((loader for loader in map(first_loader, loaders) if loader is not None), None)
    return None


def indexed(loader: Any) -> bool:
    """Whether the images of a loader can be read by their index."""
    return isinstance(loader, DataLoader) and isinstance(loader.dataset, Dataset) and indices_of(loader) is not None


class Collector:
    """Copy the first images of the batches that pass by, where none can be read by index."""

    def __init__(self, n: int, options: WatchOptions) -> None:
        self.n, self.options, self.seen = n, options, 0
        self.batches: list[Any] = []

    def take(self, batch: Any) -> None:
        """Store a copy of a batch on the CPU, while fewer than n images are stored."""
        if self.seen < self.n:
            images = pick(batch, self.options.image_key, self.options.label_key).images
            self.batches.append(apply_to_collection(batch, Tensor, lambda t: t.detach().cpu().clone()))
            self.seen += len(images)

    def panel(self, rank: int, world: int) -> Panel | None:
        """Return the images as a panel; the processes' images take turns in their numbers."""
        if not self.batches:
            return None
        ids = list(range(rank, rank + world * self.seen, world))
        return Panel(ids, self.batches, "the first of the stream", ready=True)
