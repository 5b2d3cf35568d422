"""Words and files of other projects for the command evaluate: modules to import, and the config.yaml of a LightningCLI.

A LightningCLI saves all options of its command. Of a project with one class of model and data the file has their
arguments without the class, which the words name then: `--model my_project.Net --data my_project.Data`.
"""

import inspect
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.mistakes import MistakeError

from .explained_network import import_modules

SAVED = re.compile(r"# (lightning\.pytorch|pytorch_lightning|lightning)==")  # first line of such a file
CLASSES = ("model", "data")


def without_imports(words: Sequence[str]) -> list[str]:
    """Return the words of a command without `--import MODULE ...`, whose modules are imported.

    >>> without_imports(["evaluate", "--import", "math", "--seed", "1"])
    ['evaluate', '--seed', '1']
    """
    others, modules = _cut(words, "--import")
    import_modules(modules)
    return others


def join_methods(words: Sequence[str]) -> list[str]:
    """Return the words of a command with several names behind `--methods` as one list.

    >>> join_methods(["evaluate", "--methods", "GradCAM", "LayerCAM", "--seed", "1"])
    ['evaluate', '--seed', '1', '--methods=[GradCAM,LayerCAM]']
    """
    others, names = _cut(words, "--methods")
    plain = all(name.isidentifier() for name in names)
    return [*others, f"--methods=[{','.join(names)}]"] if names and plain else list(words)


def _cut(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Return the words without an option and its values, and the values."""
    others: list[str] = []
    values: list[str] = []
    inside = False
    for word in words:
        inside = word == option or (inside and not word.startswith("-"))
        if not inside:
            others.append(word)
        elif word != option:
            values.append(word)
    return others, values


def saved_config_reader(words: Sequence[str], read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader of YAML that makes the saved configuration of any LightningCLI one of the command evaluate."""
    given = {name: _value(words, f"--{name}") for name in CLASSES}
    accepted = {"seed_everything", "trainer", *CLASSES, *inspect.signature(EvaluationTrainer.evaluate).parameters}

    def read_saved(text: str) -> Any:
        content = read(text)
        if not SAVED.match(text) or not isinstance(content, Mapping):
            return content
        others = sorted(name for name in content if name not in accepted)
        if any(content[name] is not None for name in others):
            sys.stderr.write(f"Left out of the saved configuration: {', '.join(others)}.\n")
        kept = {name: value for name, value in content.items() if name in accepted}
        return {name: _with_class(name, value, given.get(name)) for name, value in kept.items()}

    return read_saved


def _with_class(name: str, value: Any, given: str | None) -> Any:
    """Return the arguments of a model or of data with their class."""
    if name not in CLASSES or value is None or (isinstance(value, Mapping) and "class_path" in value):
        return value
    if given is None:
        raise MistakeError(
            f"expected --{name} CLASS with the saved configuration of a LightningCLI that was made for one class, got "
            f"arguments without it; add --{name} my_project.{'Net' if name == 'model' else 'Data'}."
        )
    return {"class_path": given, "init_args": value}


def _value(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option among words, None without it."""
    pairs = [*itertools.pairwise(words), *(word.split("=", 1) for word in words if "=" in word)]
    return next((value for name, value in pairs if name == option), None)
