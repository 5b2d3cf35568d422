"""Files that are written completely or not at all."""

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image


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
