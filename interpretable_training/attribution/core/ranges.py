"""Ranges of the options that are numbers, by the name of the option, checked when options are set.

An option has the same meaning in every class, so its range is listed once; "Class.option" is an exception.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` leaves out `low`, `below` leaves out `high`.

    >>> Range(0, 1, above=True).holds(1.0)
    True
    """

    low: float = -1e30
    high: float = 1e30
    above: bool = False
    below: bool = False
    whole: bool = False
    several: bool = False  # whether a sequence of these numbers is also allowed

    def holds(self, value: object) -> bool:
        """Whether a value is one number in the range."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        value = value if isinstance(value, int) else float(value)  # integers are compared without rounding
        too_low = value <= self.low if self.above else value < self.low
        too_high = value >= self.high if self.below else value > self.high
        return (isinstance(value, int) or math.isfinite(value)) and not too_low and not too_high

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        low = f"{'above' if self.above else 'of at least'} {self.low:g}"
        high = "below 2**31" if self.high == 2**31 - 1 else f"{'below' if self.below else 'up to'} {self.high:g}"
        return f"{kind} {low} and {high}" + ", or several of them" * self.several


COUNT = Range(1, 2**31 - 1, whole=True)
SHARE = Range(0, 1, above=True)
SPREAD = Range(0, 1e6)
RANGES = {
    **dict.fromkeys(("n", "steps", "batches", "local_draws", "chunk_size", "cells", "step", "most", "kernel"), COUNT),
    **dict.fromkeys(("resamples", "max_images", "AOPC.patch", "rows", "stages", "num_concepts"), COUNT),
    **dict.fromkeys(("num_groups", "min_images", "retrain_last_layer.draws"), COUNT),
    **dict.fromkeys(("patch", "stride"), Range(1, 2**31 - 1, whole=True, several=True)),
    **dict.fromkeys(("share", "energy"), SHARE),
    **dict.fromkeys(("sigma", "blur_sigma", "weight", "radius", "noise", "tolerance"), SPREAD),
    **dict.fromkeys(("lr", "growth", "ExtremalPerturbation.sigma", "Replacement.sigma"), Range(0, 1e6, above=True)),
    **dict.fromkeys(("threshold", "beta"), Range(0, 1)),
    "p1": Range(0, 1, above=True),
    "detector": Range(0, 1, above=True, below=True),
    "seed": Range(-(2**63), 2**63 - 1, whole=True),
    "start_layer": Range(0, 2**31 - 1, whole=True),
    "block": Range(-(2**31), 2**31 - 1, whole=True),
    "levels": Range(2, 2**31 - 1, whole=True),
    "discard_ratio": Range(0, 1, below=True),
    "topk": Range(0, 100, above=True),
    "percentages": Range(0, 100, above=True, below=True, several=True),
    "deltas": Range(0, 1, above=True, several=True),
    "areas": Range(0, 1, above=True, several=True),
}


def check_ranges(owner: str, options: Mapping[str, Any], optional: Sequence[str] = ()) -> None:
    """Raise an error for numbers out of range, or mean without std; `optional` ones may be None."""
    for name, value in options.items():
        limits = RANGES.get(f"{owner}.{name}", RANGES.get(name))
        if limits is None or (value is None and name in optional):
            continue
        if limits.several and isinstance(value, Tensor) and value.ndim == 1 and not value.is_meta:
            value = value.tolist()
        listed = limits.several and isinstance(value, (list, tuple)) and len(value) > 0
        if not all(limits.holds(v) for v in (value if listed else [value])):
            raise ValueError(f"expected {name} as a {limits} for {owner}, got {value!r:.100}.")
    if "mean" in options or "std" in options:
        check_normalization(options.get("mean"), options.get("std"))


def check_normalization(mean: Any, std: Any) -> None:
    """Raise an error unless mean and std are finite, std is positive, one of each per channel, or both are None."""
    if mean is None and std is None:
        return
    try:
        m, s = ([float(v) for v in values] for values in (mean, std))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor without values
        m, s = [], []
    usable = all(map(math.isfinite, m + s)) and all(v > 0 for v in s)
    if isinstance(mean, str) or isinstance(std, str) or not m or len(m) != len(s) or not usable:
        raise ValueError(
            f"expected mean and std together, one of each per channel, finite and std above 0, got mean={mean!r:.100}, "
            f"std={std!r:.100}."
        )
