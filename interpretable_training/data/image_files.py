"""Names of the pictures of a data set, listed without opening a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def absent(what: str, path: Path | str, way_out: str) -> FileNotFoundError:
    """Return the error for missing files."""
    return FileNotFoundError(f"expected {what} at {Path(path).absolute()}, got none; {way_out}")


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones and those that macOS adds to archives."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))


def pictures_in(folder: Path, root: Path) -> list[str]:
    """Return the sorted names, relative to the root, of the pictures in a folder and its folders."""
    pictures = []
    for place, _, files in os.walk(folder, followlinks=True):
        inner = os.path.relpath(place, root)
        names = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        pictures += [os.path.join(inner, name) for name in names]
    return sorted(pictures)


def by_class(folder: Path, root: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return names and classes of the pictures in class folders; a class may have none."""
    groups = [pictures_in(folder / name, root) for name in classes]
    return [file for group in groups for file in group], [i for i, group in enumerate(groups) for _ in group]
