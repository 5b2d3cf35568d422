"""Reads back what an offline run of W&B left in its folder.

A `.wandb` file is seven bytes of header, then blocks of 32 KiB with records in them, as LevelDB writes its logs: four
bytes of checksum, two of length, one of type. Type 1 is a whole record; 2, 3 and 4 are the first, middle and last part
of one that did not fit in its block.
"""

import json
import struct
from pathlib import Path

HEADER, BLOCK, PART = 7, 32 * 1024, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class Run:
    """An offline run: `rows` of its history, `config`, `summary`, `alerts` and the files of its media."""

    def __init__(self, folder):
        (self.file,) = Path(folder).glob("**/run-*.wandb")
        self.folder, self.records = self.file.parent, list(records(self.file))
        self.rows = [values(r.history.item) for r in self.records if r.WhichOneof("record_type") == "history"]
        self.alerts = [(r.alert.title, r.alert.text) for r in self.records if r.WhichOneof("record_type") == "alert"]
        self.config, self.summary = {}, {}
        for record in self.records:
            if record.WhichOneof("record_type") == "run":
                self.config |= values(record.run.config.update)
            self.config |= values(record.config.update)
            self.summary |= values(record.summary.update)

    def images(self, row, key):
        """Path and caption of each picture that a row has under a key."""
        results = row[key]
        assert results["_type"] == "images/separated"
        assert results["count"] == len(results["filenames"])
        return [(self.folder / "files" / name, text) for name, text in zip(results["filenames"], results["captions"])]


def records(file):
    """The records of a `.wandb` file, in its order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, record = HEADER, b""
    while position + PART.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < PART.size:  # too little for a part: filled with zeros
            position += left
            continue
        _, length, kind = PART.unpack_from(data, position)
        part = data[position + PART.size : position + PART.size + length]
        position += PART.size + length
        record = part if kind in (WHOLE, FIRST) else record + part
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)


def values(items):
    """The values of history, config or summary items; those with nested keys as dictionaries."""
    results = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        inside = results
        for key in path:
            inside = inside.setdefault(key, {})
        inside[last] = json.loads(item.value_json)
    return results
