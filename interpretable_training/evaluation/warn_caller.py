"""Warnings that point to the line of the user's code."""

import inspect
import warnings

INSIDE = ("interpretable_training", "contextlib")  # `evaluate` is decorated by a context manager


def warn_caller(message: str) -> None:
    """Warn at the closest caller outside of this package."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
