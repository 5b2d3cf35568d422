"""Journal of a run: the lines and pictures that watching callbacks write to disk, and how they are read.

    journal.jsonl        one JSON object per line, append-only
    images/<id>.png      pictures, one per image
    maps/<name>.png      saliency maps, one below the other, 0 to 255 between the `lo` and `hi` of each
    panels/<name>.png    contact sheets, for people who browse the folder

Every line has its `kind`, the `time` in seconds since 1970, and the `run` whose journal wrote it: several runs may
share a folder. A line that a full disk or a killed process cut off, or whose contents do not fit its kind
(`journal_lines`), is skipped and counted; all other lines are read.
"""

import hashlib
import io
import itertools
import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from interpretable_training.files import write_whole
from interpretable_training.visual.map_levels import map_levels, map_scales

from .journal_lines import read_line

FILE = "journal.jsonl"
MAP_SIDE = 56  # pixels: the grids of common networks are smaller, and a report of 200 epochs stays below 30 MB
SAFE = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d")  # on Windows, whatever the extension
Line = dict[str, Any]


class Journal:
    """Write the journal of one run; its callbacks share one, on rank zero only.

    Files are created with the first line, and never overwritten. Errors of the file system are raised; lines that are
    written after an error stay readable.

    >>> Journal("explanations").write("values", epoch=0, step=10, values={"xai/gradcam/insertion": 71.5})
    >>> read_journal("explanations").of("values")[0]["values"]
    {'xai/gradcam/insertion': 71.5}

    Args:
        folder: Folder of the journal; it may be new.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run = uuid.uuid4().hex[:12]  # in checkpoints, so that `resume` and `continued` can name it as `of`
        self.bytes_written = 0
        self.saved: set[str] = set()

    def write(self, kind: str, **facts: Any) -> None:
        """Append a line; numbers that are not finite become null, tensors numbers or lists, other objects text."""
        values = plain({"kind": kind, "time": time.time(), "run": self.run, **facts})
        line = json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / FILE).open("ab+", buffering=0) as file:
            if file.tell():
                file.seek(-1, io.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # behind a line that was cut off
            while line:  # in one piece, unless the disk is full: then the next attempt raises
                written = file.write(line)
                self.bytes_written += written
                line = line[written:]

    def save_image(self, id: str, picture: Tensor, label: int | None = None) -> None:
        """Write the picture of an image, once per id.

        Args:
            id: Any text.
            picture: uint8 (H, W, 3), or floats in [0, 1], (C, H, W); other than three channels are shown as gray.
            label: Class of the image.
        """
        if id in self.saved:
            return
        picture = picture.detach().cpu()
        if picture.dtype != torch.uint8:
            shown = picture.float().nan_to_num().clamp(0, 1)
            shown = shown if len(shown) == 3 else shown.mean(0).expand(3, -1, -1)
            picture = shown.mul(255).round().byte().permute(1, 2, 0)
        file = self._write_new("images", id, png(Image.fromarray(picture.contiguous().numpy())))
        self.write("image", id=id, file=file, label=label)
        self.saved.add(id)

    def save_maps(self, name: str, maps: Tensor) -> tuple[str, list[tuple[float, float]]]:
        """Write maps as one strip of gray pictures, averaged down to 56 pixels a side.

        Args:
            name: Any text.
            maps: Raw maps (n, H, W), on any device.

        Returns:
            The file, relative to the folder, and `lo` and `hi` of each map: its values at gray levels 0 and 255. Both
            are zero for a map with a value that is not finite.
        """
        strip, ends = quantize(shrink(maps.detach()))
        return self._write_new("maps", name, png(Image.fromarray(strip.flatten(0, 1).numpy()))), ends

    def save_panel(self, name: str, sheet: Image.Image) -> str:
        """Write a contact sheet and return its file, relative to the folder."""
        return self._write_new("panels", name, png(sheet))

    def _write_new(self, room: str, name: str, data: bytes) -> str:
        """Write a file under a free, safe name and return it; a file with the same bytes is used again."""
        (self.folder / room).mkdir(parents=True, exist_ok=True)
        stem = safe_name(name)
        for count in itertools.count():
            path = self.folder / room / f"{stem}{f'~{count}' if count else ''}.png"
            try:
                path.open("xb").close()
            except FileExistsError:
                if path.read_bytes() != data:
                    continue
            else:
                self._fill(path, data)
            return f"{room}/{path.name}"
        raise AssertionError  # itertools.count never ends

    def _fill(self, path: Path, data: bytes) -> None:
        """Write a new file; after an error its name is free again."""
        try:
            write_whole(path, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self.bytes_written += len(data)


@dataclass(frozen=True)
class JournalRun:
    """Lines of one run in a journal.

    Args:
        folder: Folder of the journal.
        lines: Lines in order, without those that a resumed training replaced; `file` is a path that can be opened.
        missing: Parts that could not be read or belong to other runs, in words.
    """

    folder: Path
    lines: list[Line]
    missing: list[str]

    def of(self, *kinds: str) -> list[Line]:
        """Return the lines of these kinds, in order."""
        return [line for line in self.lines if line["kind"] in kinds]


def read_journal(folder: str | Path, run: str | None = None) -> JournalRun:
    """Read a run from the journal of a folder, and from the journals of the trainings that it resumed.

    Args:
        folder: The folder `explanations` of a run.
        run: `Journal.run` of the run; None for the run that wrote last.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(
            f"expected a folder with {FILE}, got {str(folder)!r}; pass the folder `explanations` of a run's log_dir."
        )
    return _read_run(folder, run, frozenset())


def _read_run(folder: Path, run: str | None, seen: frozenset[Path]) -> JournalRun:
    """Read a run and the runs that it resumed, except those in the folders `seen`."""
    runs, broken = parse(folder / FILE)
    missing = [f"{broken} broken lines of {folder / FILE}"] if broken else []
    name = next(reversed(runs), "") if run is None else run
    if others := len(runs.keys() - {name}):
        missing.append(f"{others} other runs in {folder}")
    lines: list[Line] = []
    for line in runs.get(name, []):
        if line["kind"] == "continued":
            previous = _previous_run(folder / line["folder"], name, seen | {folder.resolve()})
            lines, missing = previous.lines + lines, missing + previous.missing
        if line["kind"] in ("continued", "resume"):
            lines = [old for old in lines if (old.get("step") or 0) <= line["step"]]
        lines.append({**line, "file": folder / line["file"]} if "file" in line else line)
    return JournalRun(folder, lines, missing)


def _previous_run(folder: Path, run: str, seen: frozenset[Path]) -> JournalRun:
    """Return the run that a run resumed; without lines where its journal is gone."""
    with suppress(OSError, RuntimeError, ValueError):  # too long or no names, loops of links
        if folder.resolve() not in seen and (folder / FILE).is_file():
            return _read_run(folder, run, seen)
    return JournalRun(folder, [], [f"the journal of the resumed run, {folder}"])


def parse(path: Path) -> tuple[dict[str, list[Line]], int]:
    """Return the lines of each run, the run that wrote last at the end, and the number of broken lines."""
    runs: dict[str, list[Line]] = {}
    broken = 0
    for text in filter(None, path.read_bytes().split(b"\n")):
        line = read_line(text)
        if line is None:
            broken += 1
            continue
        name = line.get("run", "")
        lines = runs.pop(name, [])
        lines.append(line)
        runs[name] = lines
    return runs, broken


def plain(value: Any) -> Any:
    """Return a value in the types of JSON."""
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def png(picture: Image.Image) -> bytes:
    """Encode a picture with the fastest compression: a fifth larger than by default, in a fraction of the time."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def safe_name(name: str) -> str:
    """Return a name that every file system accepts: the name itself, or its safe characters and a digest."""
    if SAFE.fullmatch(name) and not RESERVED.fullmatch(name):
        return name
    rest = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    return f"{rest}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def shrink(maps: Tensor) -> Tensor:
    """Average maps (n, H, W) down to at most 56 pixels a side: float32 on the CPU."""
    height, width = maps.shape[1:]
    share = min(1.0, MAP_SIDE / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    return (F.interpolate(maps[:, None].float(), size, mode="area")[:, 0] if share < 1 else maps.float()).cpu()


def quantize(maps: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """Return maps (n, h, w) as uint8, and the values at 0 and 255; zeros for maps with a value that is not finite."""
    finite = maps.isfinite().all(2).all(1)[:, None, None]
    maps = torch.where(finite, maps, 0.0)
    scales = map_scales(maps)
    return map_levels(maps, scales).mul(255).round().byte(), [(float(lo), float(hi)) for lo, hi in scales]
