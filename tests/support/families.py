"""Families of parameters of which the default suite runs a few."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return parameters; all but the fast ones are slow."""
    values = [*values]
    missing = [value for value in fast if value not in values]
    assert not missing, f"expected some of {values}, got {missing}"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
