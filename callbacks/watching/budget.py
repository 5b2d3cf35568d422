"""The cost of a callback, and how a budget limits it."""

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning as L

from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import gather
from interpretable_training.report.value_readers import read_count

MIN_IMAGES = 4  # with fewer images a callback explains less often instead
MAX_LEVEL = 64
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

    Each level halves the number of images; below the fewest each level doubles the time between explanation steps
    instead.
    """

    def __init__(self, budget: Budget | float | None, fewest: int = MIN_IMAGES) -> None:
        self.budget = Budget(budget) if isinstance(budget, (int, float)) else budget
        self.fewest, self.level = fewest, 0
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()
        self.duration = math.inf

    def start_epoch(self) -> None:
        """Count from zero."""
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()

    def spend(self, seconds: float, size: int) -> None:
        """Add the cost of an explanation step."""
        self.seconds, self.bytes = self.seconds + seconds, self.bytes + size

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
        halvings = int(math.log2(n / self.fewest)) if n > self.fewest else 0
        return 2 ** max(0, self.level - halvings)

    def adjust(self, trainer: L.Trainer, n: int) -> str:
        """Go a level up or down by the cost in the most expensive process; return what changed, in words."""
        if self.budget is None:
            return ""
        spent = gather(trainer, (self.share, self.bytes / 1e6))
        if not any(share for share, _ in spent):
            return ""  # an epoch without an explanation step
        limits = (self.budget.share, self.budget.megabytes)
        used = [max(part[i] for part in spent) / limit for i, limit in enumerate(limits) if limit is not None]
        level = self.level + (1 if max(used, default=0.0) > 1 else 0)
        if self.level and max(used, default=1.0) < 1 / SLACK:
            level = self.level - 1
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
