"""What a loader returns, taken apart, so that a mistake ends in a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

ANNOTATIONS = ("mask", "boxes", "shortcut_mask", "ignore_mask", "box_target", "mask_target")  # what batches may carry

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "input", "inputs", "x", "data")
LABEL_KEYS = ("target", "targets", "label", "labels", "class", "y")
Key = str | int | None


@dataclass(frozen=True)
class Picked:
    """What was found in a batch, and where."""

    images: Tensor
    target: Tensor | None
    image_key: Key  # None: the batch is the images
    label_key: Key
    rest: dict[str, Any]  # the other entries, by name

    def rows(self, some: slice) -> "Picked":
        """Some of the images, with what belongs to them."""
        n = len(self.images)
        rest = {k: v[some] if isinstance(v, (Tensor, list)) and len(v) == n else v for k, v in self.rest.items()}
        target = None if self.target is None else self.target[some]
        return replace(self, images=self.images[some], target=target, rest=rest)

    def __str__(self) -> str:
        target = "no labels" if self.target is None else f"labels from {self.label_key!r}"
        image = "the batch itself" if self.image_key is None else repr(self.image_key)
        return f"images {tuple(self.images.shape[1:])} from {image}, {target}"


def pick(batch: Any, image_key: Key = None, label_key: Key = None) -> Picked:
    """Images (B, C, H, W) and labels of a batch of any kind: a tensor, tuple, dict, dataclass or object.

    Args:
        batch: what a loader returned.
        image_key: name or index of the images, "outer.inner" of those in another entry; by default the usual names,
            else the first tensor of three or more dimensions that holds floating numbers.
        label_key: name or index of the labels; by default the usual names, else the first other tensor with one
            row per image, of integers or of a 0 or 1 per class.
    """
    if isinstance(batch, Tensor):
        return Picked(batch, None, None, None, {})
    entries = named(batch)
    image_key = _key(entries, image_key, IMAGE_KEYS, looks_like_images, "image_key", batch)
    images = entries[image_key]
    if not looks_like_images(images):
        raise TypeError(
            f"expected floating point images (B, C, H, W) under {image_key!r} of the batch, got {kind(images)}; "
            "pass image_key= with the name or index of the images."
        )
    others = {key: value for key, value in entries.items() if key != image_key}

    def labels(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim in (1, 2) and len(value) == len(images) and discrete(value)

    found = _key(others, label_key, LABEL_KEYS, labels, "label_key" if label_key is not None else None, batch)
    if label_key is None and found is not None and last(found) not in LABEL_KEYS:
        numbers = [v for k, v in others.items() if last(k) in LABEL_KEYS and isinstance(v, Tensor) and v.ndim]
        if any(v.is_floating_point() and len(v) == len(images) for v in numbers):
            found = None  # of a regression: what else the batch holds tells no classes
    target = None if found is None else others[found]
    if found is not None and not isinstance(target, Tensor):
        raise TypeError(f"expected labels as a tensor under {found!r} of the batch, got {kind(target)}.")
    rest = {last(key): value for key, value in others.items() if key != found}
    return Picked(images, None if target is None else as_labels(target), image_key, found, rest)


def discrete(value: Tensor) -> bool:
    """Whether a tensor may hold labels: integers, a number per class, or zeros and ones of two classes."""
    return not value.is_floating_point() or value.ndim == 2 or bool(((value == 0) | (value == 1)).all())


def as_labels(target: Tensor) -> Tensor:
    """A column of labels as (B,), and those of two classes that are written as floating numbers as integers."""
    target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    return target.long() if target.ndim == 1 and target.is_floating_point() and discrete(target) else target


def last(key: Any) -> str:
    """The name itself, without the names of what it is in."""
    return str(key).rpartition(".")[2]


def named(batch: Any) -> dict[Any, Any]:
    """The entries of a batch by name or index; those of an entry that is itself a batch as "entry.name"."""
    entries = listed(batch)
    shown = any(looks_like_images(value) for value in entries.values())
    found: dict[Any, Any] = {}
    for key, value in entries.items():
        inner = isinstance(value, Mapping) or (not shown and isinstance(value, (tuple, list)))
        found |= {f"{key}.{name}": part for name, part in named(value).items()} if inner else {key: value}
    return found


def listed(batch: Any) -> dict[Any, Any]:
    """The entries of a batch by name or index."""
    if isinstance(batch, Mapping):
        return dict(batch.items())
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return dict(enumerate(batch))
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return dict(vars(batch)) if hasattr(batch, "__dict__") else {}


def _key(entries: dict[Any, Any], given: Key, usual: Sequence[str], fits: Any, name: str | None, batch: Any) -> Any:
    """The key that is given, that has a usual name, or whose entry fits; without a `name` there may be none."""
    if given is not None:
        if given not in entries:
            raise KeyError(f"expected {name} to be one of {list(entries)}, got {given!r}.")
        return given
    found = next((key for name in usual for key, value in entries.items() if last(key) == name and fits(value)), None)
    found = next((key for key, value in entries.items() if fits(value)), None) if found is None else found
    if found is None and name is not None:
        raise TypeError(
            f"expected a batch with floating point images (B, C, H, W), got {describe(batch)}; {advice(entries, name)}"
        )
    return found


def advice(entries: dict[Any, Any], name: str) -> str:
    """What to do where no images are found."""
    if any(isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim > 2 for value in entries.values()):
        return "convert bytes to floats in the data set or its transform, as the network gets them."
    return f"pass {name}= with their name or index."


def looks_like_images(value: Any) -> bool:
    """Floating point numbers (B, C, T), (B, C, H, W) or (B, C, D, H, W)."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3


def images_and_target(batch: Any) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and target of a pair or of a dict, whose other entries are ignored."""
    if isinstance(batch, Mapping):
        found: Any = (batch.get("image"), batch.get("target"))
    else:
        found = batch
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(x, Tensor) for x in found):
        return found[0], found[1]
    raise TypeError(
        "expected a batch (images, target) or a dict with the tensors 'image' and 'target', "
        f"got {describe(batch)}; change what the data set returns or its collate_fn."
    )


def describe(batch: Any) -> str:
    """A batch in words: its type, and what its entries are."""
    if isinstance(batch, Mapping):
        return f"a dict with { ({name: kind(value) for name, value in batch.items()}) }"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {[kind(value) for value in batch]}"
    return f"a {type(batch).__name__}"


def kind(value: Any) -> str:
    """A value in words: its type, or a tensor's shape and dtype."""
    is_tensor = isinstance(value, Tensor)
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}" if is_tensor else type(value).__name__
