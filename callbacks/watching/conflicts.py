"""Warnings about callbacks that are right alone: two that log the same names, and early stopping on a failed step."""

from collections.abc import Sequence
from itertools import combinations

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn

from interpretable_training.callbacks.watching.hooks import WatchHooks


def warn_of_conflicts(trainer: L.Trainer, active: Sequence[WatchHooks]) -> None:
    """Warn where a callback overwrites what another one logs, and where a failure would end the training."""
    for one, other in combinations(active, 2):
        if type(one) is not type(other) or not set(one.options.stages) & set(other.options.stages):
            continue
        same = sorted(logged_names(one) & logged_names(other))
        if same:
            rank_zero_warn(
                f"expected different names in two {type(one).__name__}, got {same} in both, which overwrite each "
                f"other; name the methods of one, as in {{'other_{same[0].partition('/')[0]}': GradCAM()}}."
            )
    for stopping in trainer.callbacks if active else []:  # type: ignore[attr-defined]
        if isinstance(stopping, EarlyStopping) and "xai/" in stopping.monitor and stopping.check_finite:
            rank_zero_warn(
                f"EarlyStopping({stopping.monitor!r}) ends the training where the first explanation step fails, since "
                "its number is NaN then; pass it check_finite=False."
            )


def logged_names(callback: WatchHooks) -> set[str]:
    """Return the names under which a callback logs: its methods, with its metrics where it has them."""
    settings = callback.settings()
    methods, metrics = settings.get("methods", []), settings.get("metrics")
    return {f"{method}/{metric}" for method in methods for metric in metrics} if metrics else set(methods)
