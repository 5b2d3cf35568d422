"""Files that are written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file takes the place of `path` when the block ends without an error.

    After an error, such as a full disk, `path` is what it was before and nothing else is left. A process that is killed
    leaves a hidden file that ends in `~` and the suffix of `path`. A file on a link replaces what the link points to.
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
    """Write text, as UTF-8, or bytes to `path`, whole or not at all."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with whole_file(path) as beside:
        beside.write_bytes(data)
