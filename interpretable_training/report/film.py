"""The maps of a journal as a film for the report's page, thinned until they fit."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .journal import Line, Record
from .parts import Axis, during_training, short

SIDE = 224  # pixels of a picture on the page
EXACT = 96  # pictures up to this size are not compressed with losses
TOLD = ("target", "pred", "label", "prob", "prob_pred", "loss", "mass", "entropy", "degenerate")
WHOLE = {"target", "pred", "label", "degenerate"}
Event = tuple[Any, ...]


class Pictures:
    """Pictures of the images of a journal, each made once, when it is asked for."""

    def __init__(self, record: Record) -> None:
        self.lines = {str(line["id"]): line for line in record.of("image")}
        self.made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.made:
            line = self.lines.get(name)
            self.made[name] = {"src": line and picture(line["file"]), "label": line and line["label"]}
        return self.made[name]

    def size(self, names: Iterable[str]) -> int:
        """Bytes that these take in the page."""
        return sum(len(self[name]["src"] or "") + 12 * len(name) + 50 for name in names)


class Film:
    """The looks of one group, each an event with a strip of maps per track: a method and a view.

    Args:
        record: The journal.
        group: "panel" or "worst".
        axis: What curves are drawn over.
        pictures: Those of the journal.
        free: Images whose pictures are in the page already.
    """

    def __init__(
        self, record: Record, group: str, axis: Axis, pictures: Pictures, free: Iterable[str] = frozenset()
    ) -> None:
        self.pictures, self.free = pictures, set(free)
        self.events: dict[Event, list[Line]] = {}
        self.lost = 0
        for line in record.of("maps"):
            if line.get("group") != group:
                continue
            if not is_strip(line):
                self.lost += 1
                continue
            key = (line.get("epoch"), line.get("step"), line.get("stage", "fit"), axis(line))
            self.events.setdefault(key, []).append(line)
        self.kept = list(self.events)
        lines = (line for lines in self.events.values() for line in lines)
        self.tracks = list(dict.fromkeys((str(line["method"]), str(line["view"])) for line in lines))

    def track(self, line: Line) -> int:
        return self.tracks.index((str(line["method"]), str(line["view"])))

    def size(self) -> int:
        """Bytes that the kept events take in the page, with their pictures."""
        return sum(map(self.size_of, self.kept)) + self.pictures.size(set(self.ids()) - self.free)

    def size_of(self, event: Event) -> int:
        rows = sum(120 + 12 * len(str(row["id"])) for line in self.events[event] for row in line["rows"])
        files = sum(-(-Path(line["file"]).stat().st_size // 3) * 4 + 500 for line in self.events[event])
        return rows + files

    def thin(self, room: float) -> None:
        """Keep as many events as fit, evenly spread, the first and the last among them."""
        events, fits, too_many = list(self.events), 0, len(self.events) + 1
        while too_many - fits > 1:
            count = too_many - 1 if too_many > len(events) else (fits + too_many) // 2
            self.kept = [events[i] for i in evenly(len(events), count)]
            fits, too_many = (count, too_many) if self.size() <= room else (fits, count)
        self.kept = [events[i] for i in evenly(len(events), fits)]

    def ids(self) -> list[str]:
        """Images of the kept events, in order."""
        rows = (row for event in self.kept for line in self.events[event] for row in line["rows"])
        return list(dict.fromkeys(str(row["id"]) for row in rows))

    def scales(self) -> dict[int, tuple[float, float]]:
        """For each track the least and the highest end of all maps of the training, also of looks left out."""
        found: dict[int, tuple[float, float]] = {}
        for line in (line for lines in self.events.values() for line in lines if during_training(line)):
            ends = [(row["lo"], row["hi"]) for row in line["rows"] if not row.get("degenerate")]
            ends = [end for end in ends if None not in end]
            if ends:
                los, his = zip(found.get(self.track(line), ends[0]), *ends)
                found[self.track(line)] = (min(los), max(his))
        return found

    def part(self) -> dict[str, Any]:
        """As the page reads it."""
        events = [
            dict(zip(("epoch", "step", "stage", "x"), event))
            | {"strips": {self.track(line): strip(line) for line in self.events[event]}}
            for event in self.kept
        ]
        told = {"events": events, "total": len(self.events), "tracks": self.tracks}
        return {**told, "scales": self.scales(), "lost": self.lost}


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, from the first to the last; of one the last."""
    if count <= 1:
        return [total - 1] * count
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def inline(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def strip(line: Line) -> dict[str, Any]:
    """A strip of maps with what is told of each, column by column."""
    rows = line["rows"]
    columns: dict[str, Sequence[Any]] = {"id": [str(row["id"]) for row in rows]}
    columns |= {end: [short(row.get(end)) or 0.0 for row in rows] for end in ("lo", "hi")}
    for name in TOLD:
        values = [row.get(name) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values if name in WHOLE else [short(value, 4) for value in values]
    told = {"h": line["h"], "w": line["w"], "weights": line.get("weights", "raw"), "rows": columns}
    return {"src": inline(Path(line["file"]).read_bytes()), **told}


def is_strip(line: Line) -> bool:
    """Whether the file of a line is there, whole, and has a map for each row."""
    try:
        with Image.open(line["file"]) as file:
            fits = file.size == (line["w"], line["h"] * len(line["rows"]))
            return fits and file.load() is not None
    except Exception:  # whatever a damaged file makes of Pillow
        return False


def picture(path: Path) -> str | None:
    """A picture in the size of the page; None if there is none that can be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except Exception:  # whatever a damaged file makes of Pillow
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(data, "PNG", optimize=True)
        return inline(data.getvalue())
    image.save(data, "JPEG", quality=85)
    return inline(data.getvalue(), "jpeg")
