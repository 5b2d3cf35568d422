"""Files that are written whole or not at all, and tables as aligned text and as CSV that a spreadsheet opens safely."""

import csv
import io
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from PIL import Image

OTHER_FOLDER: ContextVar[Path | None] = ContextVar("OTHER_FOLDER", default=None)  # see `files_below`


@contextmanager
def files_below(folder: str | Path) -> Iterator[None]:
    """Write the files of trainings that start inside the block into another folder than that of their log.

    >>> with files_below("trial"): print(OTHER_FOLDER.get())
    trial
    """
    token = OTHER_FOLDER.set(Path(folder))
    try:
        yield
    finally:
        OTHER_FOLDER.reset(token)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path in the same folder to write to; its file replaces `path` when the block ends without an error.

    After an error, such as a full disk, `path` is unchanged and no other file remains. A process that is killed leaves
    a hidden file that ends in `~` and the suffix of `path`. If `path` is a link, the file to which it points is
    replaced.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}~{path.suffix}")  # the suffix, by which formats are chosen
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes to `path`, completely or not at all."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with whole_file(path) as beside:
        beside.write_bytes(data)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Save a picture in the format of the path's suffix, completely or not at all."""
    data = io.BytesIO()  # Pillow's own writing does not notice a disk that takes half of a JPEG
    picture.save(data, Image.registered_extensions()[Path(path).suffix.lower()])
    write_whole(path, data.getvalue())


def save_figure(figure: Any, path: str | Path, dpi: int) -> None:
    """Save a figure of matplotlib, completely or not at all; as PNG where the path has no suffix."""
    path = Path(path)
    with whole_file(path if path.suffix else path.with_suffix(".png")) as beside:
        figure.savefig(beside, dpi=dpi)


WIDTH = 120  # of a terminal
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to calculate


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Return lines of CSV; text that a spreadsheet would calculate begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([as_text(cell) for cell in line] for line in lines)
    return out.getvalue()


def as_text(cell: Any) -> Any:
    """Return the cell, with an apostrophe if it is text that looks like a formula; numbers stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}".replace("\r", " ")  # which readers take for the end of a line
    return cell


def aligned(rows: list[list[str]]) -> str:
    """Return columns of equal width, in several blocks if they do not fit on a line."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    blocks: list[list[int]] = [[]]
    for column, width in enumerate(widths[1:], 1):
        used = widths[0] + sum(2 + widths[other] for other in blocks[-1])
        if blocks[-1] and used + 2 + width > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in block)]).rstrip() for row in rows
        )
        for block in blocks
    )
