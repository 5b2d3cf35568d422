"""What looking costs, and doing less of it when it costs too much."""

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning as L

from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import gather
from interpretable_training.report.value_readers import read_count

FEWEST = 4  # images: below that it is better to look less often
HIGHEST = 64  # level
EASE = 3  # a level is taken back when looking costs this many times less than it may


@dataclass(frozen=True)
class Budget:
    """What a callback may cost.

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
    """Counts seconds and bytes of an epoch, and how far the callback thins itself out.

    Each level halves the number of images; below the fewest each level doubles the time between looks instead.
    """

    def __init__(self, budget: Budget | float | None, fewest: int = FEWEST) -> None:
        self.budget = Budget(budget) if isinstance(budget, (int, float)) else budget
        self.fewest, self.level = fewest, 0
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()
        self.duration = math.inf

    def start_epoch(self) -> None:
        self.seconds, self.bytes, self.start = 0.0, 0, time.perf_counter()

    def spend(self, seconds: float, size: int) -> None:
        self.seconds, self.bytes = self.seconds + seconds, self.bytes + size

    def end_epoch(self, trainer: L.Trainer) -> None:
        self.duration = max(time.perf_counter() - self.start, 1e-9)

    @property
    def share(self) -> float:
        """Of the last epoch's time."""
        return self.seconds / self.duration

    def keep(self, n: int) -> int:
        """How many of n images are left at this level."""
        return max(n >> self.level, min(n, self.fewest))

    def stretch(self, n: int) -> int:
        """By which factor looks are rarer at this level."""
        halvings = int(math.log2(n / self.fewest)) if n > self.fewest else 0
        return 2 ** max(0, self.level - halvings)

    def adjust(self, trainer: L.Trainer, n: int) -> str:
        """Go a level up or down by what the epoch cost in the dearest process; what changed, in words."""
        if self.budget is None:
            return ""
        spent = gather(trainer, (self.share, self.bytes / 1e6))
        if not any(share for share, _ in spent):
            return ""  # an epoch without a look
        limits = (self.budget.share, self.budget.megabytes)
        used = [max(part[i] for part in spent) / limit for i, limit in enumerate(limits) if limit is not None]
        level = self.level + (1 if max(used, default=0.0) > 1 else 0)
        if self.level and max(used, default=1.0) < 1 / EASE:
            level = self.level - 1
        if level == self.level:
            return ""
        self.level = level
        share, megabytes = max(part[0] for part in spent), max(part[1] for part in spent)
        stretch = self.stretch(n)
        often = f", in one of {stretch} epochs in which it would look" if stretch > 1 else ""
        return (
            f"used {share:.1%} of the epoch and {megabytes:.2g} MB, its budget is {self.budget}; from now on "
            f"{self.keep(n)} of {n} images{often}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def restore(self, saved: Saved) -> None:
        self.level = min(saved.read("level", read_count, 0), HIGHEST)


def at_least_one(**counts: int | None) -> None:
    """Refuse counts that are none."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}.")
