"""Lists of items as batches, and images of integers as floating point numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "input", "inputs", "x", "data")


def last_name(key: Any) -> str:
    """Return the name itself, without the names of what it is in.

    >>> last_name("batch.image")
    'image'
    """
    return str(key).rpartition(".")[2]


def collated(batch: Any) -> Any:
    """Return a list of items as one batch: dicts with stacked tensors, and stacked images next to dicts of labels.

    >>> collated([{"image": torch.zeros(3, 8, 8), "label": 1}, {"image": torch.ones(3, 8, 8), "label": 2}])["label"]
    tensor([1, 2])
    """
    if isinstance(batch, (list, tuple)) and batch and all(isinstance(item, Mapping) for item in batch):
        if any(isinstance(v, Tensor) and v.ndim > 3 for v in batch[0].values()):
            return batch  # batches of several loaders
        names = [name for name in batch[0] if all(name in item for item in batch)]
        return {name: _stacked([item[name] for item in batch]) for name in names}
    if isinstance(batch, (list, tuple)) and len(batch) >= 2 and isinstance(batch[0], (list, tuple)):
        of_labels = isinstance(batch[1], (list, tuple)) and all(isinstance(item, Mapping) for item in batch[1])
        if of_labels and len(batch[0]) == len(batch[1]):
            images = _stacked(list(batch[0]))
            if isinstance(images, list):
                raise TypeError(
                    "expected images of one size in a batch, got several sizes; resize them in the data set."
                )
            return (images, list(batch[1]), *batch[2:])
    return batch


def _stacked(values: list[Any]) -> Any:
    """Return values of one size as a tensor, others as a list."""
    if all(isinstance(v, (int, float)) for v in values):
        return torch.tensor(values)
    if all(isinstance(v, Tensor) and v.shape == values[0].shape and v.dtype == values[0].dtype for v in values):
        return torch.stack(values)
    return values


def floats(name: Any, value: Any, strict: bool = False) -> Any:
    """Return images of integers under a usual name or in the first place as floating point numbers, for watching.

    >>> floats("image", torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype
    torch.float32
    """
    named = last_name(name) in IMAGE_KEYS or name == 0
    whole = isinstance(value, Tensor) and value.dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16)
    return value.float() if named and whole and value.ndim >= 4 and not strict else value
