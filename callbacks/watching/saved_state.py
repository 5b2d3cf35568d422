"""The state of a callback in a checkpoint, which another version of the callback may have written."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

T = TypeVar("T")
Read = Callable[[Any], T]  # returns a value as it must be, or raises
LARGEST = 2**53  # of numbers of steps, images and failures


class Saved:
    """Reads a state value by value: one that is missing or unreadable becomes its default, and is named in a warning.

    Args:
        state: What the checkpoint holds.
        lost: Names of the values that could not be read; parts share the list.
        place: Before these names.
    """

    def __init__(self, state: Any, lost: list[str] | None = None, place: str = "") -> None:
        self.state: Mapping[str, Any] = state if isinstance(state, Mapping) else {}
        self.lost: list[str] = [] if lost is None else lost
        self.place = place

    def read(self, name: str, convert: Read[T], default: T) -> T:
        """The value of a name as `convert` returns it; the default where that fails."""
        try:
            return convert(self.state[name])
        except Exception:  # whatever a value of another type makes of it
            self.lost.append(self.place + name)
            return default

    def part(self, name: str) -> "Saved":
        """The state of a part of the callback."""
        return Saved(self.state.get(name), self.lost, f"{self.place}{name}.")

    def load(self, restore: Callable[["Saved"], None], owner: str) -> None:
        """Let a callback restore itself, and name what it could not read in one warning."""
        restore(self)
        if self.lost:
            rank_zero_warn(
                f"{owner} goes on from a checkpoint whose state of it lacks {self.lost} or holds something else there, "
                "as one of another version may; these begin anew and the training goes on."
            )


def integer(value: Any) -> int:
    """A whole number."""
    if type(value) is not int or abs(value) > LARGEST:
        raise TypeError(value)
    return value


def count(value: Any) -> int:
    """A number of things."""
    if integer(value) < 0:
        raise ValueError(value)
    return int(value)


def pair(value: Any) -> tuple[int, int]:
    """Epoch and step."""
    epoch, step = value
    return count(epoch), count(step)


def number(value: Any) -> float:
    """A number, also one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return float(value)


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def map_stack(value: Any) -> Tensor:
    """Maps (n, h, w)."""
    if not isinstance(value, Tensor) or value.ndim != 3 or not value.is_floating_point():
        raise TypeError(value)
    return value.to("cpu", torch.float32)


def maybe(convert: Read[T]) -> Read[T | None]:
    """None, or what `convert` reads."""
    return lambda value: None if value is None else convert(value)


def each(convert: Read[T]) -> Read[list[T]]:
    """A list of what `convert` reads."""

    def read(value: Any) -> list[T]:
        if not isinstance(value, (list, tuple)):
            raise TypeError(value)
        return [convert(item) for item in value]

    return read


def named(convert: Read[T], name: Callable[[Any], Any] = text) -> Read[dict[Any, T]]:
    """A mapping from names to what `convert` reads."""

    def read(value: Any) -> dict[Any, T]:
        if not isinstance(value, Mapping):
            raise TypeError(value)
        return {name(key): convert(item) for key, item in value.items()}

    return read
