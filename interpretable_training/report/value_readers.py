"""Readers of values from files that another version may have written or that are damaged.

A reader returns the value in the type that the program needs, or raises TypeError or ValueError.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
Reader = Callable[[Any], T]
LARGEST = 2**53  # of whole numbers: floats, and the numbers of a browser, count exactly up to here


def read_text(value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    return value


def read_flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {type(value).__name__}")
    return value


def read_number(value: Any) -> float:
    """Return a number, which may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def read_integer(value: Any) -> int:
    """Return a whole number of at most 2**53."""
    if type(value) is not int:
        raise TypeError(f"expected a whole number, got {type(value).__name__}")
    if abs(value) > LARGEST:
        raise ValueError(f"expected a whole number of at most {LARGEST}, got {value}")
    return value


def read_count(value: Any) -> int:
    """Return a whole number that is not negative."""
    if read_integer(value) < 0:
        raise ValueError(f"expected a number of at least 0, got {value}")
    return int(value)


def optional(read: Reader[T]) -> Reader[T | None]:
    """Return a reader that accepts None too."""
    return lambda value: None if value is None else read(value)


def list_of(read: Reader[T]) -> Reader[list[T]]:
    """Return a reader of lists whose items `read` accepts."""

    def read_list(value: Any) -> list[T]:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected a list, got {type(value).__name__}")
        return [read(item) for item in value]

    return read_list


def mapping_of(read: Reader[T], read_key: Callable[[Any], Any] = read_text) -> Reader[dict[Any, T]]:
    """Return a reader of mappings whose keys `read_key` and whose values `read` accepts."""

    def read_mapping(value: Any) -> dict[Any, T]:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a mapping, got {type(value).__name__}")
        return {read_key(key): read(item) for key, item in value.items()}

    return read_mapping
