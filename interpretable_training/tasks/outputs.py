"""Entries of what networks return: dicts, tuples and objects with attributes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def entry_of(output: Any, *names: str) -> Any:
    """Return the first of these entries of a dict or object, the output itself where it is a tensor, else None.

    >>> entry_of({"aux": 1, "out": 2}, "out", "logits")
    2
    """
    if isinstance(output, Tensor):
        return output
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if value is not None:
            return value
    return None


def in_words(output: Any) -> str:
    """Return what a network returned in words: its type, and shapes of tensors.

    >>> in_words({"a": torch.zeros(2, 3), "b": [1]})
    "a dict with 'a' (2, 3), 'b' list"
    """
    if isinstance(output, Tensor):
        return f"{'complex ' if output.is_complex() else ''}numbers of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "a dict with " + ", ".join(f"{name!r} {_short(value)}" for name, value in output.items())
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(map(_short, output)) or 'nothing'}"
    return f"a {type(output).__name__}"


def _short(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
