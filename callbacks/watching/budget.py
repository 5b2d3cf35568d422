"""The cost of a callback, and how a budget limits it.

    level = ceil(log2(cost / limit))    (1)

cost: expected of the next epoch, first by the time of the start-up report, later by that of the last epoch. Each level
halves the number of images, down to four; further levels double the time between explanation steps.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import gather
from interpretable_training.report.value_readers import read_count

MIN_IMAGES = 4  # with fewer images a callback explains less often instead
MAX_LEVEL = 64
DEFAULT_SHARE = 0.2  # of the first epoch, for all callbacks whose number of images is chosen for them
FURTHER = 3  # levels at most, by which steps become rarer at once: what one step costs varies
SLACK = 3  # a level is taken back when the cost is this many times below the budget


@dataclass(frozen=True)
class Budget:
    """Highest cost of a callback in an epoch.

    >>> Budget(share=0.05, megabytes=20)
    Budget(share=0.05, megabytes=20)

    Args:
        share: of the time of an epoch, such as 0.05.
        megabytes: written to disk in an epoch.
    """

    share: float | None = None
    megabytes: float | None = None

    def __post_init__(self) -> None:
        for name in ("share", "megabytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} of a budget above 0, got {value}; None is no limit.")
        if self.share is not None and self.share > 1:
            raise ValueError(f"expected a share of the epoch's time up to 1, got {self.share:g}; 0.05 is 5 %.")


class BudgetController:
    """Count seconds and bytes of an epoch, and set how many images a callback explains and how often."""

    def __init__(self, budget: Budget | float | None, fewest: int = MIN_IMAGES) -> None:
        self.budget = Budget(budget) if isinstance(budget, (int, float)) else budget
        self.fewest, self.level = fewest, 0
        self.estimate = 0.0  # seconds of an explanation step of all images, before the first one
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()
        self.duration = math.inf

    def start_epoch(self) -> None:
        """Count from zero."""
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()

    def spend(self, seconds: float, size: int) -> None:
        """Add the cost of an explanation step."""
        self.seconds, self.bytes = self.seconds + seconds, self.bytes + size

    def begin(self, used: float, n: int) -> None:
        """Choose the level of the first explanation step by its expected cost over its limit."""
        self.level = min(levels(used), self._halvings(n))

    def end_epoch(self) -> None:
        """Set the duration of the epoch."""
        self.duration = max(time.perf_counter() - self.start, 1e-9)

    @property
    def share(self) -> float:
        """Return the share of the last epoch's time."""
        return self.seconds / self.duration

    def keep(self, n: int) -> int:
        """Return how many of n images are left at this level."""
        return max(n >> self.level, min(n, self.fewest))

    def stretch(self, n: int) -> int:
        """Return the factor by which explanation steps are rarer at this level."""
        return 2 ** max(0, self.level - self._halvings(n))

    def _halvings(self, n: int) -> int:
        return int(math.log2(n / self.fewest)) if n > self.fewest else 0

    def adjust(self, trainer: L.Trainer, n: int) -> str:
        """Set the level by the cost in the most expensive process; return what changed, in words."""
        if self.budget is None:
            return ""
        spent = gather(trainer, (self.share, self.bytes / 1e6))
        if not any(share for share, _ in spent):
            return ""  # an epoch without an explanation step
        limits = (self.budget.share, self.budget.megabytes)
        used = [max(part[i] for part in spent) / limit for i, limit in enumerate(limits) if limit is not None]
        most = max(used, default=1.0)
        further = max(0, self._halvings(n) - self.level) + FURTHER
        level = min(MAX_LEVEL, self.level + min(levels(most), further))
        if most < 1 / SLACK:
            level = max(0, self.level - int(math.log2(1 / max(most, 1e-9))))
        if level == self.level:
            return ""
        self.level = level
        share, megabytes = max(part[0] for part in spent), max(part[1] for part in spent)
        stretch = self.stretch(n)
        often = f", in one of {stretch} epochs in which it would explain" if stretch > 1 else ""
        return (
            f"used {share:.1%} of the epoch and {megabytes:.2g} MB, its budget is {self.budget}; from now on "
            f"{self.keep(n)} of {n} images{often}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def restore(self, saved: Saved) -> None:
        self.level = min(saved.read("level", read_count, 0), MAX_LEVEL)


def levels(used: float) -> int:
    """Return (1) for a cost over its limit; 0 within the limit."""
    return math.ceil(math.log2(used)) if used > 1 else 0  # (1)


def plan(trainer: L.Trainer, callbacks: Sequence[Any], start: float) -> dict[str, str]:
    """Choose the images of the first explanation step of a training, by the time of its first epoch so far.

    Callbacks with a budget are planned by it. Those without, whose number of images is the default, share
    `DEFAULT_SHARE` and keep their number for the whole training.

    Args:
        trainer: the trainer.
        callbacks: the active ones.
        start: of the epoch, by `time.perf_counter`.

    Returns:
        Label of a callback -> what it leaves out, in words.
    """
    batches = trainer.num_training_batches
    done = (trainer.fit_loop.batch_idx + 1) / batches if 0 < batches < math.inf else 1.0
    epoch = (time.perf_counter() - start) / max(done, 1e-9)
    automatic = sum(callback.budget.estimate for callback in callbacks if callback.automatic)
    used = []
    for callback in callbacks:
        budget = callback.budget.budget
        limit = None if budget is None else budget.share
        cost, limit = (automatic, DEFAULT_SHARE) if callback.automatic else (callback.budget.estimate, limit)
        used.append(cost / (limit * epoch) if limit else 0.0)
    used = [max(values) for values in zip(*gather(trainer, used))]
    thinned = {}
    for callback, value in zip(callbacks, used):
        callback.budget.begin(value, callback.n)
        if callback.budget.level:
            few = f"{callback.budget.keep(callback.n)} of {callback.n} images"
            thinned[callback.label] = (
                f"explains {few}, as an epoch takes about {epoch:.2g} s; max_images= sets a number"
            )
    return thinned
