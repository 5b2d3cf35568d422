"""Cache of an evaluation: results of batches in a folder, from which it continues after a stop."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.batches.source import BatchSource
from interpretable_training.files import whole_file, write_whole
from interpretable_training.metrics.core.base import Fact

from .warn_caller import warn_caller


@dataclass
class Part:
    """Numbers of one batch, in the layout of `Table`."""

    number: int
    images: Tensor
    classes: Tensor
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    degenerate: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)


class Cache:
    """Store parts in a folder; without a folder, nothing is stored.

    Args:
        folder: where; made if it is not there.
        facts: what was evaluated; a folder that holds something else is refused.
        passports: metric -> what its number means.
        source: the data, of which the first batch is remembered.
    """

    def __init__(
        self,
        folder: str | Path | None,
        facts: Mapping[str, Fact],
        passports: Mapping[str, Mapping[str, Fact]],
        source: BatchSource,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if source.plan is None:
            raise ValueError("expected data with a length and an index for cache=, got a stream of batches.")
        self.folder.mkdir(parents=True, exist_ok=True)
        ours: dict[str, Any] = {**facts, "data": checksum_of_data(source)}
        for name, passport in passports.items():
            ours |= {f"{name}: {key}": value for key, value in passport.items()}
        described = self.folder / "evaluation.json"
        if described.exists() and any(self.folder.glob("part-*.pt")):  # one that failed at once left nothing
            refuse_other(ours, json.loads(described.read_text(encoding="utf-8")), self.folder)
        else:
            write_whole(described, json.dumps(ours, indent=2))

    def load(self) -> list[Part]:
        """Return what is done; files that cannot be read count as not done."""
        parts = []
        for path in [] if self.folder is None else sorted(self.folder.glob("part-*.pt")):
            try:
                parts.append(Part(**torch.load(path, weights_only=True)))
            except Exception as error:  # whatever half a file makes of torch.load
                warn_caller(f"{path} cannot be read ({error}); its images are measured again")
        return parts

    def keep(self, part: Part) -> None:
        """Write a part, whole or not at all."""
        if self.folder is not None:
            with whole_file(self.folder / f"part-{part.number:06d}.pt") as beside:
                torch.save(vars(part), beside)


def checksum_of_data(source: BatchSource) -> str:
    """Return digits that change with the choice of images and with the first batch, its targets and annotations."""
    plan = zlib.crc32(repr(source.plan).encode())
    parts: list[Any] = []
    for _, _, images, target, annotations in source.read_annotated(lambda number: number == 0):
        parts += [images, target, *(part for name in sorted(annotations) for part in annotations[name])]
    return f"{plan:08x} {checksum(*(torch.as_tensor(part) for part in parts if part is not None))}"


def refuse_other(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Refuse the folder of another evaluation, and name what differs."""
    differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differ:
        listed = ", ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in sorted(differ)[:5])
        raise ValueError(
            f"expected a cache of the same evaluation in {str(folder)!r}, got one of another ({listed}); choose "
            "another folder, or delete this one."
        )
