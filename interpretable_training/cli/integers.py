"""Bounds of the integers in options, configurations and sweep files."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

LARGEST = 2**32 - 1  # the largest seed of numpy, and more than any size that fits into memory
SEEDS = ("seed", "seed_everything")
WRAPPERS = ("init_args", "dict_kwargs")  # keys of YAML between an object and its options
READABLE = 10**30


def check_integers(values: Any, name: str = "") -> None:
    """Raise for integers that no option can mean: beyond 32 bits, and negative seeds.

    Args:
        values: Options, a parsed configuration or a part of one.
        name: Dotted name of the part.
    """
    if isinstance(values, Namespace):
        values = vars(values)
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_integers(value, name if key in WRAPPERS else f"{name}.{key}".lstrip("."))
    elif isinstance(values, (list, tuple)):
        for value in values:
            check_integers(value, name)
    elif isinstance(values, int):
        least = 0 if name.rpartition(".")[2] in SEEDS else -LARGEST
        if not least <= values <= LARGEST:
            given = values if abs(values) < READABLE else f"a number of {values.bit_length()} binary digits"
            raise ValueError(f"expected {name} from {least} to {LARGEST}, got {given}; pass one of these.")
