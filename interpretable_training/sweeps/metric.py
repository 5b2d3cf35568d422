"""How a run tells the sweep its metric: in lines of JSON, or in the file of an offline run of W&B.

A run finds the path of a file in the environment variable `INTERPRETABLE_TRAINING_SWEEP_FILE` and adds a line such as
{"val/accuracy": 0.91} whenever it knows more. `interpretable-training fit` does so after each validation.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "INTERPRETABLE_TRAINING_SWEEP_FILE"
BLOCK, HEADER = 32768, 7  # W&B's file: seven bytes, then records in blocks as in LevelDB's log


class Reports:
    """The values that a run has written so far."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self.values: list[float] = []
        self.names: set[str] = set()
        self.offset = 0

    def read(self) -> list[float]:
        """Those that are new."""
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
        """The metric of a line; one that is not understood is skipped."""
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            self.names |= set(row)
            if is_number(row.get(self.metric)):
                yield float(row[self.metric])

    def read_wandb(self, folders: list[Path], run_id: str) -> None:
        """What the run logged to W&B alone, once it has ended."""
        files = [file for folder in folders for file in sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"))]
        for file in files[:1]:
            summary: dict[str, Any] = {}
            for row, final in wandb_rows(file):
                self.names |= {name for name in row if not name.startswith("_")}
                if final:
                    summary |= row
                elif is_number(row.get(self.metric)):
                    self.values.append(float(row[self.metric]))
            if is_number(summary.get(self.metric)):  # also what was set there by hand
                self.values.append(float(summary[self.metric]))


def is_number(value: Any) -> bool:
    """Whether it is a number, possibly NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def wandb_rows(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """Rows of the history, and changes of the summary (then with True), of a file that W&B wrote."""
    from wandb.proto import wandb_internal_pb2  # here, because it takes half a second

    for content in wandb_records(path.read_bytes()):
        record = getattr(wandb_internal_pb2, "Record").FromString(content)  # noqa: B009  made at run time
        kind = record.WhichOneof("record_type")
        if kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            yield (
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items},
                kind != "history",
            )


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file; they are cut at the ends of blocks, and what a killed run left undone is skipped."""
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # too short for a record: filled with zeros
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)  # checksum, length, whole/first/middle/last
        part = data[position + HEADER : position + HEADER + length]
        if len(part) < length or kind not in (1, 2, 3, 4):
            return
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts
        position += HEADER + length
