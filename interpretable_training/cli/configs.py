"""Configurations of the package: listed, copied for editing, and found by their stem."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from interpretable_training import configs
from interpretable_training.mistakes import MistakeError, closest, require_writable

FOLDER = Path(configs.__file__).parent
OPTIONS = ("--config", "-c")


def config_files(folder: str = "") -> dict[str, Path]:
    """Return stem -> file of the configurations of the package, or of its `sweeps`.

    >>> config_files()["baseline"].name
    'baseline.yaml'
    """
    return {path.stem: path for path in sorted((FOLDER / folder).glob("*.yaml"))}


def find_config(name: str, folder: str = "") -> str:
    """Return the path of a configuration of the package for its stem; other names and existing files as they are."""
    known = config_files(folder)
    return str(known[name]) if name in known and not Path(name).is_file() else name


def with_paths(words: Sequence[str]) -> list[str]:
    """Return the words of a command, in which stems behind --config are paths.

    >>> Path(with_paths(["fit", "--config", "baseline"])[2]).name
    'baseline.yaml'
    """
    paths = []
    for before, word in zip(["", *words], words):
        option, equals, value = word.partition("=")
        if before in OPTIONS:
            word = find_config(word)
        elif equals and option in OPTIONS:
            word = f"{option}={find_config(value)}"
        paths.append(word)
    return paths


def list_configs(names: Iterable[str] = ()) -> str:
    """Return the command of each configuration, which stands in its first line."""
    chosen = _choose(names)
    lines = [path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for path in chosen]
    short = [line.replace(f"configs/{_relative(path)}", path.stem) for line, path in zip(lines, chosen)]
    return "\n".join([*short, "", "--copy writes the files into a folder, for editing."])


def copy_configs(folder: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """Copy configurations into a folder, all by default, and return the new files; existing files are not replaced."""
    copies = {path: Path(folder) / _relative(path) for path in _choose(names)}
    if present := [str(copy) for copy in copies.values() if copy.exists()]:
        raise MistakeError(
            f"expected a folder without these configurations, got one with {present[:3]}; choose another: "
            "interpretable-training configs --copy FOLDER."
        )
    for path, copy in copies.items():
        require_writable(copy.parent)
        shutil.copyfile(path, copy)
    return list(copies.values())


def _choose(names: Iterable[str]) -> list[Path]:
    """Return the files of these stems; all without a name."""
    known = [*config_files().values(), *config_files("sweeps").values()]
    stems = {path.stem for path in known}
    for name in names:
        if name not in stems:
            raise MistakeError(f"expected names of configurations, got {name!r}; closest: {closest(name, stems)}.")
    return [path for path in known if not names or path.stem in names]


def _relative(path: Path) -> str:
    """Return the path of a configuration inside of its folder."""
    return path.relative_to(FOLDER).as_posix()
