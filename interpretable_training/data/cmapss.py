"""C-MAPSS: sensors of simulated jet engines that run until they fail. Saxena et al., PHM 2008.

    target = min(last cycle - t, max_rul)                  (1)
    x[j]   = (raw[j] - mean[j]) / std[j]                   (2) "standard"
           = (raw[j] - min[j]) / (max[j] - min[j])         (3) "range"

t: the last cycle of a window. mean[j], std[j], min[j], max[j]: of sensor j over the training engines. The target is
capped because wear does not show in the sensors while more than `max_rul` cycles are left.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from interpretable_training.attribution.core.map_operations import one_of

from .base import SeededDataModule, at_least, seeded_generator
from .image_files import absent

PAGE = "https://data.nasa.gov/dataset/cmapss-jet-engine-simulated-data"
SUBSETS = ("FD001", "FD002", "FD003", "FD004")
SETTINGS, SENSORS = 3, 21  # columns of a file, behind the number of the engine and the cycle
CHANGING = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)  # in FD001; the others are constant


class Engine(NamedTuple):
    """Life of an engine, or its beginning.

    number: of the engine in its file. settings: operating condition, (cycles, 3). sensors: (cycles, sensors). left:
    number of cycles that follow. worn: cycles that show the wear, (cycles,), where that is known.
    """

    number: int
    settings: Tensor
    sensors: Tensor
    left: int = 0
    worn: Tensor | None = None


class Scaling:
    """Scale sensors by (2) or (3), on request in each operating condition separately.

    Args:
        engines: Training engines.
        sensors: Columns to take.
        by_condition: Whether the moments are those of the cycles with the same settings.
        scaling: "standard" or "range".
    """

    def __init__(
        self, engines: Sequence[Engine], sensors: Sequence[int], by_condition: bool, scaling: str = "standard"
    ) -> None:
        self.columns, self.by_condition = torch.tensor(sensors) - 1, by_condition
        raw = torch.cat([engine.sensors for engine in engines])[:, self.columns]
        keys = torch.cat([self.condition(engine) for engine in engines])
        self.moments = {}
        for key in keys.unique(dim=0):
            part = raw[(keys == key).all(1)]
            low = part.amin(0)
            moments = (part.mean(0), part.std(0, correction=0)) if scaling == "standard" else (low, part.amax(0) - low)
            self.moments[tuple(key.tolist())] = moments

    def condition(self, engine: Engine) -> Tensor:
        """Return altitude in thousand feet, Mach number and throttle; the files hold six settings with noise."""
        digits = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
        rounded = (engine.settings * digits).round() / digits + 0.0  # no -0
        return rounded if self.by_condition else torch.zeros_like(rounded)

    def __call__(self, engine: Engine) -> Tensor:
        """Return x (sensors, cycles) of an engine."""
        raw, keys = engine.sensors[:, self.columns], self.condition(engine)
        x = torch.empty_like(raw)
        for key in keys.unique(dim=0):
            if tuple(key.tolist()) not in self.moments:
                raise ValueError(
                    f"expected operating conditions of the training engines, {sorted(self.moments)}, got "
                    f"{tuple(key.tolist())} in engine {engine.number}; pass by_condition=False."
                )
            start, unit = self.moments[tuple(key.tolist())]
            rows = (keys == key).all(1)
            x[rows] = (raw[rows] - start) / torch.where(unit > 1e-6 * start.abs(), unit, 1)  # (2), (3); constants: 0
        return x.T.float().contiguous()


class Windows(Dataset):
    """Windows (C, T) of engines and the cycles that are left after each, in memory.

    Args:
        engines: Engines to cut into windows. A life shorter than a window is padded with copies of its first cycle.
        scaling: Scaling of the sensors.
        window: T.
        step: Cycles from one window to the next; None takes the last window of each engine alone.
        max_rul: See (1); None does not cap.
        annotations: Whether items are dicts.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        scaling: Scaling,
        window: int,
        step: int | None,
        max_rul: int | None,
        annotations: bool,
    ) -> None:
        self.engines, self.window, self.annotations = list(engines), window, annotations
        self.max_rul = math.inf if max_rul is None else max_rul
        pads = [max(0, window - len(engine.sensors)) for engine in engines]
        self.series = [F.pad(scaling(e)[None], (pad, 0), mode="replicate")[0] for e, pad in zip(engines, pads)]
        worn = [torch.zeros(0, dtype=torch.bool) if e.worn is None else e.worn for e in engines]
        self.worn = [F.pad(w, (pad, 0)) for w, pad in zip(worn, pads)]
        self.index: list[tuple[int, int]] = []  # engine, and how many cycles of it follow the window
        for i, x in enumerate(self.series):
            self.index += [(i, behind) for behind in range(0, x.shape[1] - window + 1, step or x.shape[1])][::-1]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor] | dict[str, Tensor | int]:
        i, behind = self.index[item]
        engine, end = self.engines[i], self.series[i].shape[1] - behind
        x, part = self.series[i][:, end - self.window : end], slice(end - self.window, end)
        target = torch.tensor(float(min(engine.left + behind, self.max_rul)))  # (1)
        if not self.annotations:
            return x, target
        cycle = len(engine.sensors) - behind
        facts: dict[str, Tensor | int] = {"image": x, "target": target, "engine": engine.number, "cycle": cycle}
        return facts if engine.worn is None else {**facts, "mask": self.worn[i][part]}


class CMAPSSDataModule(SeededDataModule):
    """Read windows of the sensors of jet engines, and the number of cycles that are left.

    ```python
    data = CMAPSSDataModule("CMAPSSData", "FD001", annotations=True)
    ```

    Batches are series (B, C, T) and targets (B,). Engines of `train_FD00x.txt` are split into training and validation;
    for testing the last window of each engine of `test_FD00x.txt` is used, as in the challenge. `mean` and `std` do not
    exist: a sensor has no black, so hidden values become 0 after scaling.

    Args:
        root: Folder with the text files.
        subset: FD001 has one operating condition and one fault, FD002 six conditions, FD003 two faults, FD004 both.
        window: Cycles in a window.
        stride: Cycles from one window of training and validation to the next.
        max_rul: The target is never larger; see (1).
        cap_test: Whether the targets of the test split are capped as well. Published errors differ in this.
        sensors: Numbers of the sensors, from 1 to 21.
        scaling: (2) or (3): hidden values become the mean of a sensor, or its smallest value.
        by_condition: Whether sensors are scaled in each operating condition separately; FD002 and FD004 need it.
        n_val: Training engines set apart for validation.
        annotations: Whether items are dicts instead of pairs: `image`, `target`, `engine`, `cycle` and, where it is
            known, `mask` (T,), the cycles that show the wear.
        batch_size: Windows per batch.
        num_workers: Processes that load batches.
        seed: Seed of the validation split and of the order of training.

    Attributes:
        channel_names: Name of each channel of a series.
    """

    def __init__(
        self,
        root: str = "data",
        subset: Literal["FD001", "FD002", "FD003", "FD004"] = "FD001",
        window: int = 30,
        stride: int = 1,
        max_rul: int = 125,
        cap_test: bool = True,
        sensors: Sequence[int] = CHANGING,
        scaling: Literal["standard", "range"] = "standard",
        by_condition: bool = False,
        n_val: int = 20,
        annotations: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        at_least(1, window=window, stride=stride, max_rul=max_rul, n_val=n_val)
        one_of("subset", subset, *SUBSETS)
        one_of("scaling", scaling, "standard", "range")
        wrong = [s for s in sensors if not 1 <= s <= SENSORS]
        if wrong or not sensors or len({*sensors}) < len(sensors):
            raise ValueError(f"expected different sensors from 1 to {SENSORS}, got {list(sensors)}.")
        self.root, self.subset, self.window, self.stride = root, subset, window, stride
        self.max_rul, self.cap_test, self.sensors = max_rul, cap_test, tuple(sensors)
        self.scaling, self.by_condition, self.n_val, self.annotations = scaling, by_condition, n_val, annotations
        self.channel_names = [f"sensor {s}" for s in sensors]

    def setup(self, stage: str | None = None) -> None:
        wanted = self.missing(stage)
        if not wanted:
            return
        engines = {split: self.engines(split) for split in dict.fromkeys(["train", *wanted])}
        scaling = Scaling(engines["train"], self.sensors, self.by_condition, self.scaling)
        for split in wanted:
            step = None if split == "test" else self.stride
            cap = None if split == "test" and not self.cap_test else self.max_rul
            self.splits[split] = Windows(engines[split], scaling, self.window, step, cap, self.annotations)

    def engines(self, split: str) -> list[Engine]:
        """Return the engines of one split."""
        if split == "test":
            left = self.read("RUL", 1)[:, 0].tolist()
            engines = self.lives("test")
            if len(left) != len(engines):
                raise ValueError(
                    f"expected a line of RUL_{self.subset}.txt for each of the {len(engines)} engines of "
                    f"test_{self.subset}.txt, got {len(left)}; take both from the same archive."
                )
            return [engine._replace(left=int(cycles)) for engine, cycles in zip(engines, left)]
        engines = self.lives("train")
        if self.n_val >= len(engines):
            raise ValueError(f"expected n_val below {len(engines)}, the number of engines, got {self.n_val}.")
        order = torch.randperm(len(engines), generator=seeded_generator(self.seed, "val")).tolist()
        chosen = sorted(order[: self.n_val] if split == "val" else order[self.n_val :])
        return [engines[i] for i in chosen]

    def lives(self, kind: str) -> list[Engine]:
        """Return the engines of a file; its columns are number, cycle, settings and sensors."""
        rows, engines = self.read(kind, 2 + SETTINGS + SENSORS), []
        for number in np.unique(rows[:, 0]):
            life = rows[rows[:, 0] == number]
            life = life[np.argsort(life[:, 1], kind="stable")]
            wrong = np.flatnonzero(life[:, 1] != np.arange(1, len(life) + 1))
            if len(wrong):  # windows over a gap would look like any other, and their targets be wrong
                raise ValueError(
                    f"expected the cycles 1, 2, ... of engine {number:g}, each once, in {self.path(kind)}, got "
                    f"{life[wrong[0], 1]:g} in the place of cycle {wrong[0] + 1}; is the file whole?"
                )
            values = torch.from_numpy(life)
            engines.append(Engine(int(number), values[:, 2 : 2 + SETTINGS], values[:, 2 + SETTINGS :]))
        return engines

    def path(self, kind: str) -> Path:
        return Path(self.root) / f"{kind}_{self.subset}.txt"

    def read(self, kind: str, columns: int) -> np.ndarray:
        """Return the numbers of a file, (rows, columns)."""
        path = self.path(kind)
        if not path.is_file():
            raise absent("a file of C-MAPSS", path, f"download CMAPSSData.zip from {PAGE} and unpack it there.")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # an error below
                rows = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            raise ValueError(f"expected numbers between spaces in {path}, got: {error}") from error
        if rows.shape[1] != columns or not len(rows):
            raise ValueError(f"expected rows of {columns} numbers in {path}, got {rows.shape}; is it another file?")
        odd = np.argwhere(~np.isfinite(rows) | ((rows < 0) & (columns == 1)))
        if len(odd):
            row, column = odd[0]
            raise ValueError(
                f"expected finite numbers in {path}, and numbers of cycles from 0 on, got {rows[row, column]:g} in row "
                f"{row + 1}, column {column + 1}; is the file whole?"
            )
        return rows
