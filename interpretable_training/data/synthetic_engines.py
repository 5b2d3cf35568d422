"""Drawn engines: from a known cycle on, some sensors show the wear.

    wear   = max(0, 1 - cycles left / max_rul)              (1)
    sensor = offset + noise + trend * wear                  (2)

trend: of the sensors that wear changes; the others show noise, a walk or a wave, which say nothing of the end. Wear
begins where the capped target begins to fall, so a window tells the target by its worn cycles alone.
"""

import math
from typing import Literal

import torch

from .base import at_least, seeded_generator
from .cmapss import SETTINGS, CMAPSSDataModule, Engine

TRENDS = {2: 4.0, 5: -4.0}  # in units of the noise, at the end of the life
WALK, WAVE, COUNT = 3, 6, 8


class EnginesDataModule(CMAPSSDataModule):
    """Draw engines in memory, in the form of C-MAPSS: windows (8, T) and the cycles that are left.

    >>> data = EnginesDataModule(n_train=2, n_val=2, n_test=2, batch_size=4)
    >>> data.setup("fit")
    >>> next(iter(data.train_dataloader()))[0].shape[:2]
    torch.Size([4, 8])

    Sensors 2 and 5 drift while an engine wears out; the other six know nothing of it, though sensor 3 walks at random
    and sensor 6 swings. Engine i of a split depends on `seed`, `max_rul`, `window` and i alone.

    Args:
        n_train: Number of engines that train.
        n_val: Number of validation engines.
        n_test: Number of test engines, each of which is stopped at some time before its end.
        window: Cycles in a window.
        stride: Cycles from one window of training and validation to the next.
        max_rul: How many cycles before the end the wear begins, and the largest target.
        scaling: See `CMAPSSDataModule`.
        annotations: Whether items are dicts instead of pairs: `image`, `target`, `engine`, `cycle` and `mask` (T,), the
            worn cycles.
        batch_size: Windows per batch.
        num_workers: Processes that load batches.
        seed: Seed of the engines and of the order of training.

    Attributes:
        channel_names: Name of each channel of a series.
        worn_sensors: Which channels are changed by wear.
    """

    def __init__(
        self,
        n_train: int = 60,
        n_val: int = 20,
        n_test: int = 40,
        window: int = 48,
        stride: int = 2,
        max_rul: int = 48,
        scaling: Literal["standard", "range"] = "standard",
        annotations: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            window=window,
            stride=stride,
            max_rul=max_rul,
            sensors=range(1, COUNT + 1),
            scaling=scaling,
            n_val=n_val,
            annotations=annotations,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        at_least(1, n_train=n_train, n_test=n_test)
        self.counts = {"train": n_train, "val": n_val, "test": n_test}
        self.worn_sensors = [sensor - 1 for sensor in TRENDS]

    def engines(self, split: str) -> list[Engine]:
        return [self.draw(split, i) for i in range(self.counts[split])]

    def draw(self, split: str, i: int) -> Engine:
        """Return engine i of a split."""
        generator = seeded_generator(self.seed, split, i)
        sound = self.window + int(torch.randint(60, (), generator=generator))
        left = torch.arange(sound + self.max_rul - 1, -1, -1)
        wear = (1 - left / self.max_rul).clamp(min=0)  # (1)
        sensors = torch.randn(len(left), COUNT, generator=generator)
        sensors += 0.5 * torch.randn(COUNT, generator=generator)
        walk = 0.3 * torch.randn(len(left), generator=generator).cumsum(0)
        phase = 2 * math.pi * torch.rand((), generator=generator)
        sensors[:, WALK - 1] += walk
        sensors[:, WAVE - 1] += 2 * (left / 6 + phase).sin()
        for sensor, trend in TRENDS.items():
            sensors[:, sensor - 1] += trend * wear  # (2)
        stopped = 0
        if split == "test":
            stopped = int(torch.randint(self.max_rul + sound - self.window + 1, (), generator=generator))
        lived = slice(0, len(left) - stopped)
        return Engine(i + 1, torch.zeros(len(left), SETTINGS)[lived], sensors[lived], stopped, (wear > 0)[lived])
