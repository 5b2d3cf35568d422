"""The state of a callback in a checkpoint, which another version of the callback may have written."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from interpretable_training.report.value_readers import Reader, read_count

T = TypeVar("T")


class Saved:
    """Read a state value by value: one that is missing or unreadable becomes its default, and is named in a warning.

    Args:
        state: What the checkpoint holds.
        lost: Names of the values that could not be read; parts share the list.
        place: Before these names.
    """

    def __init__(self, state: Any, lost: list[str] | None = None, place: str = "") -> None:
        self.state: Mapping[str, Any] = state if isinstance(state, Mapping) else {}
        self.lost: list[str] = [] if lost is None else lost
        self.place = place

    def read(self, name: str, convert: Reader[T], default: T) -> T:
        """Return the value of a name as `convert` returns it; the default where that fails."""
        try:
            return convert(self.state[name])
        except Exception:  # a value of another type may raise anything
            self.lost.append(self.place + name)
            return default

    def part(self, name: str) -> "Saved":
        """Return the state of a part of the callback."""
        return Saved(self.state.get(name), self.lost, f"{self.place}{name}.")

    def load(self, restore: Callable[["Saved"], None], owner: str) -> None:
        """Call `restore`, and name the values that could not be read in one warning."""
        restore(self)
        if self.lost:
            rank_zero_warn(
                f"{owner} goes on from a checkpoint whose state of it lacks {self.lost} or holds something else there, "
                "as one of another version may; these begin anew and the training goes on."
            )


def epoch_and_step(value: Any) -> tuple[int, int]:
    """Return epoch and step."""
    epoch, step = value
    return read_count(epoch), read_count(step)


def map_stack(value: Any) -> Tensor:
    """Return maps (n, h, w) in float32 on the CPU."""
    if not isinstance(value, Tensor) or value.ndim != 3 or not value.is_floating_point():
        raise TypeError(value)
    return value.to("cpu", torch.float32)
