"""Mistakes of the user as one paragraph on stderr, instead of a page of usage or a traceback."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from interpretable_training.mistakes import MistakeError, closest

from ._compat import (
    constructor_error,
    dotted_key,
    is_too_large,
    missing_file,
    owner_of_option,
    required_arguments,
    unknown_class,
    unknown_option,
    wrong_value,
)
from .configs import config_files

DEBUG = "INTERPRETABLE_TRAINING_DEBUG"  # set to anything: tracebacks for everything
OURS = re.compile(r"expected .*, got .*", re.DOTALL)  # how the errors of this package begin


@contextmanager
def one_paragraph() -> Iterator[None]:
    """Turn mistakes of the user into a paragraph and exit code 2; other errors keep their traceback."""
    try:
        yield
    except Exception as error:
        # Lightning's error by its name: commands that need no Lightning do not import it.
        names = {cls.__name__ for cls in type(error).__mro__}
        known = isinstance(error, (MistakeError, FileNotFoundError)) or "MisconfigurationException" in names
        text = too_large(error) if is_too_large(error) else str(error)
        if DEBUG in os.environ or not (known or OURS.match(text)):
            raise
        lines = "\n".join(map(printable, text.split("\n")))
        sys.stderr.write(f"\ninterpretable-training: {lines}\n")
        raise SystemExit(2) from error


def too_large(error: Exception) -> str:
    """Return a paragraph for sizes that do not fit into memory."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"expected numbers and sizes that fit into memory, got {reason!r}; pass smaller ones, such as "
        f"--data.image_size 64. {DEBUG}=1 shows where it failed."
    )


def printable(text: str) -> str:
    """Return a line without control characters, which names of files and classes may contain."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def print_line(text: str) -> None:
    """Print a line at once; nothing more once the reader of the output, such as `head`, has ended."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes when it ends


def rewrite_parser_error(message: str, options: Iterable[str], classes: Iterable[str]) -> str:
    """Return one paragraph for an error of jsonargparse.

    Args:
        message: Text of the error.
        options: Dotted names of all options.
        classes: Names of all classes that can be given without their path.
    """
    key = dotted_key(message)
    place = f" at {key!r}" if key else ""
    if name := unknown_option(message):
        return _rewrite_unknown_option(name, place, message, set(options))
    if name := unknown_class(message):
        close = closest(name.rpartition(".")[2], set(classes))
        advice = "Others need their full dotted path."
        if "." in name:
            advice = "Its module has to be found by Python: evaluate --import MODULE also looks in the working folder."
        return f"expected the name of a class{place}, got {name!r}; closest: {close}. {advice}"
    if name := missing_file(message):
        near = Path(name).parent
        close = closest(Path(name).name, [path.name for path in near.iterdir()] if near.is_dir() else [])
        ours = closest(Path(name).stem, config_files())
        return (
            f"expected a file that exists, got {name!r}; closest in {str(near)!r}: {close}, in the package: {ours}, "
            "which interpretable-training configs lists."
        )
    if OURS.search(message):
        return constructor_error(message) or message
    if names := required_arguments(message):
        if place:
            return f"expected a value of {names}{place}, got none; pass it in the file or as an option."
        return f"expected {names}, got none; name them in a file, --config FILE, or as --model CLASS --data CLASS."
    if text := wrong_value(message):
        return f"{text}{place}."
    return " ".join(message.split())


def _rewrite_unknown_option(name: str, place: str, message: str, options: set[str]) -> str:
    """Return a paragraph for an option that does not exist, with the closest that do."""
    name = name.lstrip("-").partition("=")[0]
    owner = owner_of_option(message)
    if owner is None:
        top = {option.partition(".")[0] for option in options}
        if name.partition(".")[0] not in top:
            name, options = name.partition(".")[0], top
        return (
            f"expected an option, got {name!r}; closest: {closest(name, options)}. "
            "All options: interpretable-training COMMAND --help."
        )
    accepted = parameters(owner)
    return (
        f"expected an option of {owner.rpartition('.')[2]}{place}, got {name!r}; "
        f"closest: {closest(name, accepted)}. All options: {sorted(accepted)}."
    )


def parameters(class_path: str) -> set[str]:
    """Return the names of the arguments of a class and of its bases, to which it may pass them."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if not isinstance(cls, type):  # a function that returns the object
        return set(inspect.signature(cls).parameters)
    names = {
        key
        for base in inspect.getmro(cls)[:-1]
        if "__init__" in vars(base)
        for key in inspect.signature(vars(base)["__init__"]).parameters
    }
    return names - {"self", "args", "kwargs"}
