"""Formats and texts of W&B and Optuna that have no public reader.

`tests/sweeps/test_compat_sweeps.py` compares each of them with the installed versions.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # W&B's file: seven bytes, then records in blocks as in LevelDB's log
LINE_START = b'{"op_code"'  # of each line of Optuna's journal
GRID_ATTRIBUTES = ("grid_id", "search_space")  # in which Optuna's GridSampler keeps the point of a trial


def wandb_files(folders: Iterable[Path], run_id: str) -> list[Path]:
    """Return the files of a run of W&B, which documents neither their folders nor their names."""
    return [file for folder in folders for file in sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"))]


def wandb_rows(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield rows of the history, and changes of the summary (then with True), of a file that W&B wrote."""
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
    """Yield the records of a file, which are cut at the ends of blocks; skip the unfinished one of a killed run."""
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


def grid_point(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a trial's system attributes that names its point on the grid."""
    return {key: value for key, value in attributes.items() if key in GRID_ATTRIBUTES}


def is_end_of_grid(error: RuntimeError) -> bool:
    """Whether Optuna could not end a loop of its own, after it wrote the state of a trial: it has no error class."""
    return "Study.stop" in str(error)
