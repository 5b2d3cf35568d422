"""Numbered batches from a data module, loader, data set, pair or iterable, with the index of each image."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.state import same_state

from .read import ANNOTATIONS, Key, LabelKey, Picked, check_keys, describe, pick

Split = Literal["val", "test"]
BATCH = 32  # images, where the data do not come in batches


class BatchSource:
    """Read batches of images with their targets and indices.

    A data set that can be indexed is read in its own order, not in the loader's; the seed chooses `max_images` of it.
    Another source is read in its order, up to `max_images`.

    Args:
        data: a data module, a loader, a data set, a pair of tensors (images, target) or an iterable of batches.
        max_images: how many images at most.
        split: of a data module.
        seed: of the choice of images.
        image_key: see `pick`.
        label_key: see `pick`.
    """

    def __init__(
        self,
        data: Any,
        max_images: int | None = None,
        split: Split = "val",
        seed: int = 0,
        image_key: Key = None,
        label_key: LabelKey = None,
    ) -> None:
        one_of("split", split, "val", "test")
        check_keys(image_key, label_key)
        self.keys = image_key, label_key
        if max_images is not None and max_images < 1:
            raise ValueError(f"expected max_images of at least 1, got {max_images}; None takes all.")
        self.mean, self.std = (getattr(data, name, None) for name in ("mean", "std"))
        self.max_images, self.source = max_images, source_of(data, split)
        self.plan: list[list[int]] | None = None
        chosen = indices_of(self.source) if isinstance(self.source, DataLoader) else None
        if chosen is not None:
            if max_images is not None and max_images < len(chosen):
                order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
                chosen = chosen[order[:max_images].sort().values]
            self.plan = [part.tolist() for part in chosen.split(self.source.batch_size or BATCH) if len(part)]

    def size(self) -> int | None:
        """Return the number of images, or None where it is not known."""
        return None if self.plan is None else sum(map(len, self.plan))

    def read(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[int], Tensor, Tensor | None]]:
        """Yield number, indices, images and target of each batch for which `wanted(number)` is true."""
        for number, indices, images, target, _ in self.read_annotated(wanted):
            yield number, indices, images, target

    def read_annotated(
        self, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, list[int], Tensor, Tensor | None, dict[str, Any]]]:
        """Yield the same as `read` with the annotations of the batch, such as masks and boxes."""
        for number, indices, picked in self.read_picked(wanted):
            yield number, indices, picked.images, picked.target, annotations_of(picked.rest)

    def read_picked(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[int], Picked]]:
        """Yield number, indices, and all entries of each batch for which `wanted(number)` is true.

        It is asked when the batch is about to be read, so that processes which share batches can claim them one by one.
        """
        if self.plan is None:
            yield from self._stream(wanted)
            return
        numbers: deque[int] = deque()
        with same_state(self.source.dataset, self.source.collate_fn):
            for batch in again(self.source, noted(filter(wanted, range(len(self.plan))), numbers, self.plan)):
                number = numbers.popleft()
                yield number, self.plan[number], pick(batch, *self.keys, strict=True)

    def _stream(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[int], Picked]]:
        seen = 0
        for number, batch in enumerate(self.source):
            picked = pick(batch, *self.keys, strict=True)
            if self.max_images is not None and seen + len(picked.images) > self.max_images:
                picked = picked.rows(slice(self.max_images - seen))
            indices = list(range(seen, seen + len(picked.images)))
            seen += len(picked.images)
            if len(picked.images) and wanted(number):
                yield number, indices, picked
            if seen == self.max_images:
                return


def source_of(data: Any, split: Split) -> Any:
    """Return a loader, or an iterable of batches."""
    loaders = getattr(data, f"{split}_dataloader", None)
    if callable(loaders):
        data.prepare_data()
        data.setup("validate" if split == "val" else "test")
        return source_of(loaders(), split)
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if pair and data[1].ndim < 3:  # else two batches of images
        images, target = data
        if len(images) != len(target):
            raise ValueError(f"expected as many targets as images, got {len(target)} for {len(images)} images.")
        data = TensorDataset(images, target)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=BATCH)
    if not hasattr(data, "__iter__") or isinstance(data, (Tensor, str, dict)):
        raise TypeError(
            f"expected a data module, a loader, a data set, (images, target) or batches as data, got {describe(data)}."
        )
    return data


def indices_of(loader: DataLoader) -> Tensor | None:
    """Return the sorted indices of the items that a loader reads; None where they are not known beforehand."""
    data, sampler = loader.dataset, loader.sampler
    custom = type(loader).__iter__ is not DataLoader.__iter__ or type(loader.batch_sampler) is not BatchSampler
    if custom or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return torch.tensor(sorted(sampler.indices), dtype=torch.long)
    whole = isinstance(sampler, (SequentialSampler, RandomSampler)) and len(sampler) == len(data)
    return torch.arange(len(data)) if whole or isinstance(sampler, DistributedSampler) else None


def noted(numbers: Iterable[int], notes: deque[int], plan: list[list[int]]) -> Iterator[list[int]]:
    """Yield the indices of numbered batches, and note the number of each."""
    for number in numbers:
        notes.append(number)
        yield plan[number]


def again(loader: DataLoader, batches: Iterable[list[int]]) -> DataLoader:
    """Return the same loader for other batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def annotations_of(entries: Any) -> dict[str, Any]:
    """Return the annotations among the entries of a batch: tensors, or lists with one tensor for each image."""
    if not isinstance(entries, Mapping):
        return {}
    known = {name: entries[name] for name in ANNOTATIONS if isinstance(entries.get(name), (Tensor, list, tuple))}
    masks = ("mask", "shortcut_mask", "ignore_mask")
    return {
        n: v[:, 0] if n in masks and isinstance(v, Tensor) and v.ndim == 4 and v.shape[1] == 1 else v
        for n, v in known.items()
    }
