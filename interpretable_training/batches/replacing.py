"""Other images in a batch of any type, and the former ones back."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor


def replace_images(batch: Any, images: Tensor, others: Tensor) -> Callable[[], Any]:
    """Put other images in the place of those of a batch; return a function that puts the former ones back.

    >>> batch = {"image": images, "target": target}
    >>> put_back = replace_images(batch, images, images + 1)
    >>> batch["image"] is images, put_back(), batch["image"] is images
    (False, None, True)

    In dicts, lists and objects the entry is replaced. Tuples cannot change: the images are written into their tensor.

    Args:
        batch: what a training step gets.
        images: the tensor that the batch holds.
        others: images of the same shape.
    """
    for holder in _holders(batch):
        entries = holder.items() if isinstance(holder, Mapping) else enumerate(holder)
        key = next((key for key, value in entries if value is images), None)
        if key is not None:
            holder[key] = others
            return partial(holder.__setitem__, key, images)
    former = images.detach().clone()
    _write(images, others)
    return partial(_write, images, former)


def _holders(batch: Any) -> Iterator[Any]:
    """Yield the dicts and lists of a batch, outer ones first; attributes of objects are in a dict."""
    if not isinstance(batch, (Mapping, list, tuple, Tensor)):
        batch = getattr(batch, "__dict__", ())
    if isinstance(batch, (MutableMapping, list)):
        yield batch
    if isinstance(batch, Tensor):
        return
    for part in batch.values() if isinstance(batch, Mapping) else batch:
        if isinstance(part, (Mapping, list, tuple)):
            yield from _holders(part)


@torch.no_grad()
def _write(images: Tensor, others: Tensor) -> None:
    images.copy_(others)
