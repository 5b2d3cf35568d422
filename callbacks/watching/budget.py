"""The cost of a callback, and how a budget limits it.

    level = ceil(log2(cost / limit))    (1)

cost: of an explanation step, and limit: its part of the time until the next one. Before the first step the cost is that
of the start-up report, whose second, warm pass is timed; later that of the last epoch. Each level halves the number of
images, with a budget down to one, by default down to four; further levels double the time between explanation steps.
Callbacks whose images must stay the same choose their number before the first step.
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

MIN_IMAGES = 4  # by default
MAX_LEVEL = 64
DEFAULT_SHARE = 0.15  # of an epoch, for all callbacks whose number of images is chosen for them
AIM = 0.8  # part of the limit for which the first step is planned: what it costs is not known exactly
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
    """Count seconds and bytes of an epoch, and set how many images a callback explains and how often.

    Args:
        budget: the highest cost.
        fewest: images, which are not halved further.
        fixed: whether the number of images stays that of the first explanation step.
    """

    def __init__(self, budget: Budget | float | None, fewest: int = 1, fixed: bool = False) -> None:
        self.budget = Budget(budget) if isinstance(budget, (int, float)) else budget
        self.fewest, self.fixed, self.level = fewest, fixed, 0
        self.first = 0  # the level of the first explanation step
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
        self.level = self.first = min(levels(used), self._fewest_at(n))

    def end_epoch(self) -> None:
        """Set the duration of the epoch."""
        self.duration = max(time.perf_counter() - self.start, 1e-9)

    @property
    def share(self) -> float:
        """Return the share of the last epoch's time."""
        return self.seconds / self.duration

    def keep(self, n: int) -> int:
        """Return how many of n images are left at this level."""
        return max(n >> min(self.level, self._halvings(n)), min(n, self.fewest))

    def stretch(self, n: int) -> int:
        """Return the factor by which explanation steps are rarer at this level."""
        return 2 ** max(0, self.level - self._halvings(n))

    def _halvings(self, n: int) -> int:
        """Return the level beyond which explanation steps become rarer."""
        return self.first if self.fixed else self._fewest_at(n)

    def _fewest_at(self, n: int) -> int:
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
            level = max(self._halvings(n) * self.fixed, self.level - int(math.log2(1 / max(most, 1e-9))))
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
        return {"level": self.level, "first": self.first}

    def restore(self, saved: Saved) -> None:
        self.level = min(saved.read("level", read_count, 0), MAX_LEVEL)
        self.first = min(saved.read("first", read_count, 0), MAX_LEVEL)


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
    batch = max(1e-9, time.perf_counter() - start) / max(1, trainer.fit_loop.batch_idx + 1)
    waits = [batch * batches_between(trainer, callback.schedule) for callback in callbacks]
    automatic = sum(c.budget.estimate / wait for c, wait in zip(callbacks, waits) if c.automatic)
    used = []
    for callback, wait in zip(callbacks, waits):
        budget = callback.budget.budget
        limit = None if budget is None else budget.share
        share, limit = (automatic, DEFAULT_SHARE) if callback.automatic else (callback.budget.estimate / wait, limit)
        used.append(share / (AIM * limit) if limit else 0.0)
    used = [max(values) for values in zip(*gather(trainer, used))]
    thinned = {}
    for callback, value, wait in zip(callbacks, used, waits):
        callback.budget.begin(value, callback.n)
        if callback.budget.level:
            few = f"{callback.budget.keep(callback.n)} of {callback.n} images"
            thinned[callback.label] = (
                f"explains {few}: all would take about {callback.budget.estimate:.2g} s, each {wait:.2g} s of "
                "training; max_images= sets a number"
            )
    return thinned


def batches_between(trainer: L.Trainer, schedule: Any) -> float:
    """Return the number of training batches between two explanation steps of a callback."""
    every = [float(trainer.num_training_batches)]
    if schedule.every_n_epochs and trainer.enable_validation:
        every.append(float(trainer.val_check_batch or math.inf))  # None where the clock decides
    if schedule.every_n_steps:
        every.append(float(schedule.every_n_steps * trainer.accumulate_grad_batches))
    least = min(every)
    return least if least < math.inf else float(max(1, trainer.fit_loop.batch_idx + 1))
