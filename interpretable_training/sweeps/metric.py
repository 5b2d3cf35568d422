"""Metrics of a run: lines of JSON, or the file of an offline run of W&B.

The environment variable `INTERPRETABLE_TRAINING_SWEEP_FILE` holds the path of a file, to which a run appends lines such
as {"val/accuracy": 0.91}. `interpretable-training fit` does so after each validation.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ._compat import wandb_files, wandb_rows

FILE = "INTERPRETABLE_TRAINING_SWEEP_FILE"


class Reports:
    """Values that a run has written so far."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self.values: list[float] = []
        self.names: set[str] = set()
        self.offset = 0

    def read(self) -> list[float]:
        """Return the new values."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            lines = file.read().split(b"\n")
        self.offset += sum(len(line) + 1 for line in lines[:-1])  # the last one is still being written, or empty
        new = [value for line in lines[:-1] for value in self.take(line)]
        self.values += new
        return new

    def take(self, line: bytes) -> Iterator[float]:
        """Yield the metric of a line; skip lines that are no mapping in JSON."""
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            self.names |= set(row)
            if is_number(row.get(self.metric)):
                yield float(row[self.metric])

    def read_wandb(self, folders: list[Path], run_id: str) -> None:
        """Read values that a finished run logged to W&B only."""
        for file in wandb_files(folders, run_id)[:1]:
            summary: dict[str, Any] = {}
            for row, final in wandb_rows(file):
                self.names |= {name for name in row if not name.startswith("_")}
                if final:
                    summary |= row
                elif is_number(row.get(self.metric)):
                    self.values.append(float(row[self.metric]))
            if is_number(summary.get(self.metric)):  # also values that the program set there itself
                self.values.append(float(summary[self.metric]))


def append_line(path: str, row: Mapping[str, Any]) -> None:
    """Append metrics to the file of a run."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def is_number(value: Any) -> bool:
    """Whether it is a number, possibly NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
