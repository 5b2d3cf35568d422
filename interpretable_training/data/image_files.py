"""Which pictures a data set has, found without opening one."""

import os
from collections.abc import Sequence
from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def absent(what: str, path: Path | str, way_out: str) -> FileNotFoundError:
    """The error for files that are not there."""
    return FileNotFoundError(f"expected {what} at {Path(path).absolute()}, got none; {way_out}")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order; hidden ones and what macOS adds to archives aside."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))


def pictures_in(folder: Path, root: Path) -> list[str]:
    """Names, from the root on, of the pictures in a folder and its folders, in order."""
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        inner = os.path.relpath(place, root)
        names = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        found += [os.path.join(inner, name) for name in names]
    return sorted(found)


def by_class(folder: Path, root: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names and classes of the pictures in class folders; a class may have none."""
    groups = [pictures_in(folder / name, root) for name in classes]
    return [file for group in groups for file in group], [i for i, group in enumerate(groups) for _ in group]
