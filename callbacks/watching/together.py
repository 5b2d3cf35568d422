"""What is wrong with callbacks that are right alone: two of one kind that log the same names, and early stopping."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from interpretable_training.callbacks.watching.base import Watcher


def check_together(trainer: L.Trainer, active: "Sequence[Watcher]") -> None:
    """Warn where a callback overwrites what another one logs, and where a failed look would end the training."""
    for one, other in combinations(active, 2):
        same = (
            sorted(names(one) & names(other))
            if type(one) is type(other) and set(one.stages) & set(other.stages)
            else []
        )
        if same:
            rank_zero_warn(
                f"expected different names in two {type(one).__name__}, got {same} in both, which overwrite each "
                f"other; name the methods of one, as in {{'other_{same[0].partition('/')[0]}': GradCAM()}}."
            )
    for stopping in trainer.callbacks if active else []:  # type: ignore[attr-defined]
        if isinstance(stopping, EarlyStopping) and "xai/" in stopping.monitor and stopping.check_finite:
            rank_zero_warn(
                f"EarlyStopping({stopping.monitor!r}) ends the training where the first look fails, since there is no "
                "number then; pass it check_finite=False."
            )


def names(watcher: "Watcher") -> set[str]:
    """Under which names a callback logs: its methods, with its metrics where it has such."""
    told = watcher.settings()
    methods, metrics = told.get("methods", []), told.get("metrics")
    return {f"{method}/{metric}" for method in methods for metric in metrics} if metrics else set(methods)
