"""The one reader of batches: images, target and what else a batch holds, whatever its type."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .collate import IMAGE_KEYS, collated, floats, last_name

ANNOTATIONS = (  # what batches may carry
    *("mask", "boxes", "shortcut_mask", "ignore_mask", "not_here", "box_target", "mask_target", "cue", "group"),
)

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_mask", "pixel_attention_mask")
LABEL_KEYS = ("target", "targets", "label", "labels", "class", "y")
Key = int | str | Callable[[Any], Any] | None  # in this order: from a command line "1" is a number
LabelKey = Key | Literal[False]


@dataclass(frozen=True)
class Picked:
    """Images and target of a batch, with their keys and the other entries."""

    images: Tensor
    target: Tensor | None
    image_key: int | str | None  # None: the batch is the images
    label_key: int | str | None
    rest: dict[str, Any]  # the other entries, by name

    def rows(self, part: slice) -> "Picked":
        """Return a part of the images, with their targets and other entries."""
        n = len(self.images)
        rest = {k: v[part] if isinstance(v, (Tensor, list)) and len(v) == n else v for k, v in self.rest.items()}
        target = None if self.target is None else self.target[part]
        return replace(self, images=self.images[part], target=target, rest=rest)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return images and target; raise a TypeError where there is no target."""
        if self.target is None:
            raise _not_a_pair(self.images if self.image_key is None else {self.image_key: self.images, **self.rest})
        return self.images, self.target

    def __str__(self) -> str:
        target = "no labels" if self.target is None else f"labels from {_named(self.label_key)}"
        image = "the batch itself" if self.image_key is None else _named(self.image_key)
        return f"images {tuple(self.images.shape[1:])} from {image}, {target}"


def check_keys(image_key: Key, label_key: LabelKey) -> None:
    """Raise a TypeError for keys that no batch has."""
    for name, key in (("image_key", image_key), ("label_key", label_key)):
        off = name == "label_key" and key is False
        if (
            not off
            and key is not None
            and (isinstance(key, bool) or not (isinstance(key, (int, str)) or callable(key)))
        ):
            hint = " or False for no labels" if name == "label_key" else ""
            raise TypeError(f"expected {name} as a name, an index, a function of the batch{hint}, got {key!r:.100}.")


def pick(batch: Any, image_key: Key = None, label_key: LabelKey = None, strict: bool = False) -> Picked:
    """Return images (B, C, H, W) and labels of a batch of any kind: a tensor, tuple, dict, dataclass or object.

    >>> pick({"pixel_values": images, "labels": target}).label_key
    'labels'

    Args:
        batch: what a loader returned.
        image_key: name or index of the images, "outer.inner" of those in another entry, or a function of the batch; by
            default the usual names, else the first tensor of three or more dimensions that holds floating numbers.
        label_key: name or index of the labels, or a function of the batch; False for none; by default the usual names,
            else the first other tensor with one row per image, of integers or of a 0 or 1 per class.
        strict: refuse a batch with several candidates instead of taking the first, and return the target as it is.
            This is for training and measuring. Usual names and the order of a pair leave no choice.

    Raises:
        TypeError: where images are missing, and where `strict` refuses.
        KeyError: where the batch does not have a given key.
    """
    check_keys(image_key, label_key)
    batch = collated(batch)
    if isinstance(batch, Tensor) and not callable(image_key) and not callable(label_key):
        return Picked(batch, None, None, None, {})
    entries = (
        {} if isinstance(batch, Tensor) else {name: floats(name, v, strict) for name, v in _entries(batch).items()}
    )
    for name, key in (("image", image_key), ("label", label_key)):
        if callable(key):
            entries[CALLED + name] = _of_function(key, batch, f"{name}_key")
    find = _strict_keys if strict else _likely_keys
    wanted = CALLED + "image" if callable(image_key) else image_key
    likely, label = find(batch, entries, wanted, CALLED + "label" if callable(label_key) else label_key or None)
    label = None if label_key is False else label
    target = None if label is None else entries[label]
    if target is not None and not strict:
        target = _as_labels(target)
    images = entries[likely]
    rest: dict[str, Any] = {}
    for key in sorted(entries, key=lambda key: str(key).count(".")):  # those of inner entries give way
        if key not in (likely, label) and entries[key] is not images:
            name = last_name(key)
            rest[name if name not in rest else str(key)] = entries[key]
    return Picked(images, target, likely, label, rest)


CALLED = "a function: "  # in the key of an entry that a function returned


def _of_function(key: Callable[[Any], Any], batch: Any, option: str) -> Tensor:
    """Return what a function of the user's reads in a batch; raise an error unless it is a tensor."""
    value = key(batch)
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {option}= as a function that returns a tensor of the batch, got {_kind(value)}.")
    return value


def _named(key: Any) -> str:
    """Return a key in words."""
    return "a function" if str(key).startswith(CALLED) else repr(key)


def describe(batch: Any) -> str:
    """Return a batch in words: its type, and what its entries are."""
    if isinstance(batch, Mapping):
        return f"a dict with { ({name: _kind(value) for name, value in batch.items()}) }"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {[_kind(value) for value in batch]}"
    return f"a {type(batch).__name__}"


def _kind(value: Any) -> str:
    """Return a value in words: its type, or a tensor's shape and dtype."""
    is_tensor = isinstance(value, Tensor)
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}" if is_tensor else type(value).__name__


def _entries(batch: Any) -> dict[Any, Any]:
    """Return the entries of a batch by name or index; those of an entry that is itself a batch as "entry.name"."""
    outer = _outer_entries(batch)
    has_images = any(_looks_like_images(value) for value in outer.values())
    entries: dict[Any, Any] = {}
    for key, value in outer.items():
        inner = isinstance(value, Mapping) or (not has_images and isinstance(value, (tuple, list)))
        entries |= {f"{key}.{name}": part for name, part in _entries(value).items()} if inner else {key: value}
    return entries


def _outer_entries(batch: Any) -> dict[Any, Any]:
    """Return the entries of a batch by name or index."""
    if isinstance(batch, Mapping):
        return dict(batch.items())
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return dict(enumerate(batch))
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return dict(vars(batch)) if hasattr(batch, "__dict__") else {}


def _usual_key(entries: dict[Any, Any], names: Sequence[str], fits: Callable[[Any], bool]) -> Any:
    """Return the key with the first of the usual names whose entry fits, or None."""
    return next(
        (key for name in names for key, value in entries.items() if last_name(key) == name and fits(value)), None
    )


def _looks_like_images(value: Any) -> bool:
    """Whether a value is floating point numbers (B, C, T), (B, C, H, W) or (B, C, D, H, W)."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3


# The strict reading: nothing is guessed.


def _strict_keys(batch: Any, entries: dict[Any, Any], image_key: Any, label_key: Any) -> tuple[Any, Any]:
    """Return the only keys that images and target can have."""
    for key in (image_key, label_key):
        if key is not None and not _is_tensor(entries.get(key)):
            raise KeyError(f"expected the key of a tensor in {describe(entries)}, got {key!r}.")
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(_is_tensor, batch))
    if is_pair and image_key is None and label_key is None:
        first, second = entries
        turned = entries[first].ndim < 3 and _looks_like_images(entries[second])
        return (second, first) if turned else (first, second)
    image_key = _only_image_key(batch, entries) if image_key is None else image_key
    others = {key: value for key, value in entries.items() if key != image_key}
    return image_key, _only_label_key(batch, others, len(entries[image_key])) if label_key is None else label_key


def _only_image_key(batch: Any, entries: dict[Any, Any]) -> Any:
    """Return the key of the images by its usual name, or the only one of a tensor that looks like images."""
    key = _usual_key(entries, IMAGE_KEYS, lambda value: _is_tensor(value) and value.ndim >= 3)  # bytes, too
    alike = [key for key, value in entries.items() if _looks_like_images(value) and not _is_annotation(key)]
    key = alike[0] if key is None and len(alike) == 1 else key
    key = _usual_key(entries, IMAGE_KEYS, _is_tensor) if key is None else key
    if key is None:
        raise _not_a_pair(batch)
    return key


def _only_label_key(batch: Any, others: dict[Any, Any], n: int) -> Any:
    """Return the key of the target by its usual name, or the only one of a tensor with a row per image, or None."""
    key = _usual_key(others, LABEL_KEYS, _is_tensor)
    rows = [
        key
        for key, value in others.items()
        if _is_tensor(value) and value.ndim in (1, 2) and len(value) == n and not _is_annotation(key)
    ]
    if key is None and len(rows) > 1:
        raise _not_a_pair(batch)
    return rows[0] if key is None and rows else key


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_annotation(key: Any) -> bool:
    return any(part in ANNOTATIONS for part in str(key).split("."))


def _not_a_pair(batch: Any) -> TypeError:
    """Return the error for a batch without one image tensor and one target."""
    return TypeError(
        "expected a batch (images, target) or a dict with the tensors 'image' and 'target', "
        f"got {describe(batch)}; change what the data set returns or its collate_fn."
    )


# The lenient reading, for watching: the most likely entries.


def _likely_keys(batch: Any, entries: dict[Any, Any], image_key: Any, label_key: Any) -> tuple[Any, Any]:
    """Return the given keys, else those with usual names, else those of the first entries that fit."""
    image_key = _likely_key(entries, image_key, IMAGE_KEYS, _looks_like_images, "image_key")
    if image_key is None:
        raise TypeError(
            f"expected a batch with floating point images (B, C, H, W), got {describe(batch)}; {_advice(entries)}"
        )
    images = entries[image_key]
    if not _looks_like_images(images):
        raise TypeError(
            f"expected floating point images (B, C, H, W) under {image_key!r} of the batch, got {_kind(images)}; "
            "pass image_key= with the name or index of the images."
        )
    others = {key: v for key, v in entries.items() if key != image_key and last_name(key) not in MODEL_INPUTS}

    def labels(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim in (1, 2) and len(value) == len(images) and _discrete(value)

    likely = _likely_key(others, label_key, LABEL_KEYS, labels, "label_key")
    if label_key is None and likely is not None and last_name(likely) not in LABEL_KEYS:
        numbers = [v for k, v in others.items() if last_name(k) in LABEL_KEYS and isinstance(v, Tensor) and v.ndim]
        if any(v.is_floating_point() and len(v) == len(images) for v in numbers):
            likely = None  # of a regression: what else the batch holds are no classes
    if likely is not None and not isinstance(others[likely], Tensor):
        raise TypeError(f"expected labels as a tensor under {likely!r} of the batch, got {_kind(others[likely])}.")
    return image_key, likely


def _likely_key(
    entries: dict[Any, Any], given: Any, usual: Sequence[str], fits: Callable[[Any], bool], option: str
) -> Any:
    """Return the key that is given, that has a usual name, or whose entry fits; None where nothing does."""
    if given is not None:
        if given not in entries:
            raise KeyError(f"expected {option} to be one of {list(entries)}, got {given!r}.")
        return given
    key = _usual_key(entries, usual, fits)
    return next((key for key, value in entries.items() if fits(value)), None) if key is None else key


def _discrete(value: Tensor) -> bool:
    """Whether a tensor may hold labels: integers, a number per class, or zeros and ones of two classes."""
    return not value.is_floating_point() or value.ndim == 2 or bool(((value == 0) | (value == 1)).all())


def _as_labels(target: Tensor) -> Tensor:
    """Return a column of labels as (B,), and those of two classes that are written as floating numbers as integers."""
    target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    return target.long() if target.ndim == 1 and target.is_floating_point() and _discrete(target) else target


def _advice(entries: dict[Any, Any]) -> str:
    """Return what to do where no entry looks like images."""
    values = [value for value in entries.values() if isinstance(value, Tensor)]
    if any(value.is_complex() for value in values):
        return "complex numbers have no picture: pass image_key= with a function that returns their magnitude."
    if any(value.dtype == torch.uint8 and value.ndim > 2 for value in values):
        return "convert bytes to floats in the data set or its transform, as the network gets them."
    return "pass image_key= with their name or index."
