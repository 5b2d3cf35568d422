"""Maps of a journal as films for the report, thinned until they fit."""

import base64
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from .journal import JournalRun, Line
from .map_distance import mean_distance, read_maps, stabilization_point
from .parts import Axis, during_training, round_for_page

SIDE = 224  # pixels of a picture on the page
EXACT = 96  # pictures up to this size are stored without loss
COLUMNS = ("target", "pred", "label", "prob", "prob_pred", "loss", "mass", "entropy", "degenerate")
INTEGERS = {"target", "pred", "label", "degenerate"}
Event = tuple[Any, ...]


class EmbeddedPictures:
    """Pictures of a journal as data URLs; each is encoded once, when it is used first."""

    def __init__(self, run: JournalRun) -> None:
        self.lines = {str(line["id"]): line for line in run.of("image")}
        self.made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.made:
            line = self.lines.get(name)
            self.made[name] = {"src": line and embed_picture(line["file"]), "label": line and line["label"]}
        return self.made[name]

    def size(self, names: Iterable[str]) -> int:
        """Return the bytes that these pictures take in the page."""
        return sum(len(self[name]["src"] or "") + 12 * len(name) + 50 for name in names)


class Film:
    """Explanation steps of one group of images, each with a strip of maps per track, which is a method and a view.

    Args:
        run: The run in its journal.
        group: "panel" or "hardest".
        axis: The x axis of curves.
        pictures: EmbeddedPictures of the journal.
        free: Images whose pictures other films put into the page.
    """

    def __init__(
        self, run: JournalRun, group: str, axis: Axis, pictures: EmbeddedPictures, free: Iterable[str] = frozenset()
    ) -> None:
        self.pictures, self.free = pictures, set(free)
        self.events: dict[Event, list[Line]] = {}
        self.lost = 0
        for line in run.of("maps"):
            if line.get("group") != group:
                continue
            if not _is_strip(line):
                self.lost += 1
                continue
            key = (line.get("epoch"), line.get("step"), line.get("stage", "fit"), axis(line))
            self.events.setdefault(key, []).append(line)
        self.shown = list(self.events)
        lines = (line for lines in self.events.values() for line in lines)
        self.tracks = list(dict.fromkeys((str(line["method"]), str(line["view"])) for line in lines))

    def track(self, line: Line) -> int:
        """Return the number of the track of a line."""
        return self.tracks.index((str(line["method"]), str(line["view"])))

    def size(self) -> int:
        """Return the bytes that the shown steps and their pictures take in the page."""
        return sum(map(self._size_of, self.shown)) + self.pictures.size(set(self.ids()) - self.free)

    def _size_of(self, event: Event) -> int:
        rows = sum(120 + 12 * len(str(row["id"])) for line in self.events[event] for row in line["rows"])
        files = sum(-(-Path(line["file"]).stat().st_size // 3) * 4 + 500 for line in self.events[event])
        return rows + files

    def thin(self, room: float) -> None:
        """Keep as many steps as fit, evenly spread, with the first and the last."""
        events, fits, too_many = list(self.events), 0, len(self.events) + 1
        while too_many - fits > 1:
            count = too_many - 1 if too_many > len(events) else (fits + too_many) // 2
            self.shown = [events[i] for i in evenly(len(events), count)]
            fits, too_many = (count, too_many) if self.size() <= room else (fits, count)
        self.shown = [events[i] for i in evenly(len(events), fits)]

    def ids(self) -> list[str]:
        """Return the images of the shown steps, in order."""
        rows = (row for event in self.shown for line in self.events[event] for row in line["rows"])
        return list(dict.fromkeys(str(row["id"]) for row in rows))

    def scales(self) -> dict[int, tuple[float, float]]:
        """Return the lowest and highest value of each track over the training, including steps that are left out."""
        scales: dict[int, tuple[float, float]] = {}
        for line in (line for lines in self.events.values() for line in lines if during_training(line)):
            ends = [(row["lo"], row["hi"]) for row in line["rows"] if not row.get("degenerate")]
            ends = [end for end in ends if None not in end]
            if ends:
                los, his = zip(scales.get(self.track(line), ends[0]), *ends)
                scales[self.track(line)] = (min(los), max(his))
        return scales

    def stable(self) -> dict[int, float]:
        """Return track -> position of the stabilization point in the training, of the tracks that have one."""
        points = {}
        for number, (method, view) in enumerate(self.tracks):
            steps = [
                (event[-1], line)
                for event, lines in self.events.items()
                for line in lines
                if (line["method"], line["view"]) == (method, view) and during_training(line)
            ]
            maps = [read_maps(line) for _, line in steps]
            drift = [mean_distance(now, before) for before, now in pairwise(maps)]
            point = stabilization_point(drift)
            if point is not None and steps[point][0] is not None:
                points[number] = steps[point][0]
        return points

    def part(self) -> dict[str, Any]:
        """Return the film as the page's script reads it."""
        events = [
            dict(zip(("epoch", "step", "stage", "x"), event))
            | {"strips": {self.track(line): _strip(line) for line in self.events[event]}}
            for event in self.shown
        ]
        counts = {"total": len(self.events), "lost": self.lost, "stable": self.stable()}
        return {"events": events, "tracks": self.tracks, "scales": self.scales(), **counts}


def evenly(total: int, count: int) -> list[int]:
    """Return `count` numbers below `total`, evenly from the first to the last; a single one is the last."""
    if count <= 1:
        return [total - 1] * count
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _strip(line: Line) -> dict[str, Any]:
    """Return a strip of maps with the numbers of each map, column by column."""
    rows = line["rows"]
    columns: dict[str, Sequence[Any]] = {"id": [str(row["id"]) for row in rows]}
    columns |= {end: [round_for_page(row.get(end)) or 0.0 for row in rows] for end in ("lo", "hi")}
    for name in COLUMNS:
        values = [row.get(name) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values if name in INTEGERS else [round_for_page(value, 4) for value in values]
    facts = {"h": line["h"], "w": line["w"], "weights": line.get("weights", "raw")}
    return {"src": _data_url(Path(line["file"]).read_bytes()), **facts, "rows": columns}


def _is_strip(line: Line) -> bool:
    """Whether the file of a line is complete and has a map for each row."""
    try:
        with Image.open(line["file"]) as file:
            fits = file.size == (line["w"], line["h"] * len(line["rows"]))
            return fits and file.load() is not None
    except Exception:  # Pillow raises many types for damaged files
        return False


def embed_picture(path: Path, side: int = SIDE) -> str | None:
    """Return a picture of at most `side` pixels as a data URL; None where no picture can be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except Exception:  # Pillow raises many types for damaged files
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(data, "PNG", optimize=True)
        return _data_url(data.getvalue())
    image.save(data, "JPEG", quality=85)
    return _data_url(data.getvalue(), "jpeg")
