"""Mistakes of the user as one paragraph on stderr, instead of a page of usage or a traceback."""

import difflib
import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEBUG = "INTERPRETABLE_TRAINING_DEBUG"  # set to anything: tracebacks for everything
OURS = re.compile(r"expected .*, got .*", re.DOTALL)  # how the errors of this package begin
# What jsonargparse says, and has many lines about.
OPTION = re.compile(r"(?:Option '(\S+)' is not accepted|does not accept option '(\S+)'|unrecognized arguments: (\S+))")
CLASS = re.compile(r"(?:Expected a dot import path string: (\S+)|Import path (\S+) does not correspond)")
VALUE = re.compile(r"^\s*(?:- )?(Expected (?:a|one of|.*value).*)$", re.MULTILINE)
MISSING = re.compile(r"File does not exist: '?([^']+)'?")
OWNER = re.compile(r"class_path[ =]'([\w.]+)'")
KEY = re.compile(r'Parser key "([\w.]+)"')


class MistakeError(Exception):
    """A mistake of the user, in one paragraph."""


@contextmanager
def one_paragraph() -> Iterator[None]:
    """End with exit code 2 and a paragraph where the user can mend it; anything else keeps its traceback."""
    try:
        yield
    except Exception as error:
        # Lightning's error by its name: commands that need no Lightning shall not import it.
        names = {cls.__name__ for cls in type(error).__mro__}
        known = isinstance(error, (MistakeError, FileNotFoundError)) or "MisconfigurationException" in names
        if DEBUG in os.environ or not (known or OURS.match(str(error))):
            raise
        said = "\n".join(map(printable, str(error).split("\n")))
        sys.stderr.write(f"\ninterpretable-training: {said}\n")
        raise SystemExit(2) from error


def printable(text: str) -> str:
    """A line without signs that control a terminal, which names of files and classes may hold."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def require_writable(folder: str | Path) -> None:
    """Find out before a training, not after it, that its results cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MistakeError(
            f"expected an output folder that can be written, got {str(folder)!r} ({error.strerror}); choose another "
            "(--output of the demo, --trainer.logger.init_args.save_dir or --trainer.default_root_dir otherwise)."
        ) from error


def explain(message: str, options: Iterable[str], classes: Iterable[str]) -> str:
    """One paragraph for a message of jsonargparse.

    Args:
        message: What jsonargparse says.
        options: Dotted names of all options.
        classes: Names of all classes that can be given by their name alone.
    """
    key = ".".join(KEY.findall(message))
    place = f" at {key!r}" if key else ""
    if found := OPTION.search(message):
        return explain_option(next(filter(None, found.groups())), place, message, set(options))
    if found := CLASS.search(message):
        name = next(filter(None, found.groups())).rstrip(".")
        close = closest(name.rpartition(".")[2], set(classes))
        return (
            f"expected the name of a class{place}, got {name!r}; closest: {close}. Others need their full dotted path."
        )
    if found := MISSING.search(message):
        near = Path(found[1]).parent
        close = closest(Path(found[1]).name, [path.name for path in near.iterdir()] if near.is_dir() else [])
        return f"expected a file that exists, got {found[1]!r}; closest in {str(near)!r}: {close}."
    if "arguments are required" in message:
        return f"{message}; name them in a file, --config FILE, or as --model CLASS --data CLASS."
    if OURS.search(message):
        return first_of_union(message)
    if found := VALUE.search(message):
        value = re.findall(r"Given value: (.*)", message)
        given = f". Got value: {value[0]}" if value and "Got value" not in found[1] else ""
        return re.sub(r"<class '(\w+)'>", r"\1", f"{found[1].strip()}{given}") + f"{place}."
    return " ".join(message.split())


def explain_option(name: str, place: str, message: str, options: set[str]) -> str:
    """What to write instead of an option that does not exist."""
    name = name.lstrip("-").partition("=")[0]
    before, _, after = message.partition("' is not accepted")
    # Arguments of functions, such as optimizers, are reported before their class, those of classes after it.
    owners = OWNER.findall(before) + re.findall(r"^\. Got value: Namespace\(class_path='([\w.]+)'", after)
    if "does not accept" in message or not owners:
        top = {option.partition(".")[0] for option in options}
        if name.partition(".")[0] not in top:
            name, options = name.partition(".")[0], top
        return (
            f"expected an option, got {name!r}; closest: {closest(name, options)}. "
            "All options: interpretable-training COMMAND --help."
        )
    accepted = parameters(owners[-1])
    return (
        f"expected an option of {owners[-1].rpartition('.')[2]}{place}, got {name!r}; "
        f"closest: {closest(name, accepted)}. All options: {sorted(accepted)}."
    )


def parameters(class_path: str) -> set[str]:
    """Names of the arguments of a class and, as they may be handed on, of its bases."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if not isinstance(cls, type):  # a function that returns the object
        return set(inspect.signature(cls).parameters)
    found = {
        key
        for base in inspect.getmro(cls)[:-1]
        if "__init__" in vars(base)
        for key in inspect.signature(vars(base)["__init__"]).parameters
    }
    return found - {"self", "args", "kwargs"}


def closest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that look alike, upper and lower case aside."""
    lower = {known.lower(): known for known in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, cutoff=0.5)]


def first_of_union(message: str) -> str:
    """The error that a constructor raised, out of jsonargparse's list of all the types that it tried."""
    tried = re.findall(r"^\s*- (?!Expected a |Not a valid |Problem )(.*)$", message, re.MULTILINE)
    return tried[0] if tried else message
