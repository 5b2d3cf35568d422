"""Texts and private names of jsonargparse, Lightning and torch on which the command line relies.

`tests/cli/test_compat_cli.py` compares each of them with the installed versions.
"""

import re
from typing import Any

_OPTION = re.compile(r"(?:Option '(\S+)' is not accepted|does not accept option '(\S+)'|unrecognized arguments: (\S+))")
_CLASS = re.compile(
    r"(?:Expected a dot import path string: (\S+)|Import path (\S+) does not correspond"
    r"|given class_path '(\S+)':\s+(?:module '\S+' has no attribute|No module named))"
)
_VALUE = re.compile(r"^\s*(?:- )?(Expected (?:a|one of|.*value).*)$", re.MULTILINE)
_FILE = re.compile(r"File does not exist: '?([^']+)'?")
_REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
_OWNER = re.compile(r"class_path[ =]'([\w.]+)'")
_KEY = re.compile(r'Parser key "([\w.]+)"')
_TRIED = re.compile(r"^\s*- (?!Expected a |Not a valid |Problem )(.*)$", re.MULTILINE)
_MEMORY = re.compile(r"can't allocate memory|Storage size calculation overflowed")


def command_parsers(cli: Any) -> dict[str, Any]:
    """Return the parser of each command: Lightning keeps them in a private attribute only."""
    return cli._subcommand_parsers


def option_names(parser: Any) -> set[str]:
    """Return the dotted names of a parser's options: argparse has no public list."""
    return {action.dest for action in parser._actions}


def unknown_option(message: str) -> str | None:
    """Return the option that jsonargparse does not accept: its errors have no fields."""
    match = _OPTION.search(message)
    return match and next(filter(None, match.groups()))


def owner_of_option(message: str) -> str | None:
    """Return the class path that does not accept the option, from the text around it."""
    if "does not accept option" in message:
        return None
    before, _, after = message.partition("' is not accepted")
    # jsonargparse reports arguments of functions, such as optimizers, before their class, those of classes after it.
    owners = _OWNER.findall(before) + re.findall(r"^\. Got value: Namespace\(class_path='([\w.]+)'", after)
    return owners[-1] if owners else None


def unknown_class(message: str) -> str | None:
    """Return the name that leads to no class."""
    match = _CLASS.search(message)
    return match and next(filter(None, match.groups())).rstrip(".")


def missing_file(message: str) -> str | None:
    """Return the path of a configuration that does not exist."""
    match = _FILE.search(message)
    return match and match[1]


def required_arguments(message: str) -> str | None:
    """Return the arguments of the parser, or of a class in a configuration, that have no value."""
    match = _REQUIRED.search(message)
    return match and match[1].strip(" .")


def wrong_value(message: str) -> str | None:
    """Return the sentence about a value of the wrong type, with the value."""
    match = _VALUE.search(message)
    if match is None:
        return None
    value = re.findall(r"Given value: (.*)", message)
    given = f". Got value: {value[0]}" if value and "Got value" not in match[1] else ""
    return re.sub(r"<class '(\w+)'>", r"\1", f"{match[1].strip()}{given}")


def dotted_key(message: str) -> str:
    """Return the dotted name of the place in the configuration; "" if the text names none."""
    return ".".join(_KEY.findall(message))


def constructor_error(message: str) -> str | None:
    """Return the error of a constructor, out of the list of all types that jsonargparse tried."""
    tried = _TRIED.findall(message)
    return tried[0] if tried else None


def is_broken_yaml(message: str) -> bool:
    """Whether jsonargparse could not read a file as YAML."""
    return message.startswith("Problems parsing config")


def is_too_large(error: BaseException) -> bool:
    """Whether a number does not fit into memory or a machine integer: torch raises a RuntimeError for it on the CPU."""
    if isinstance(error, RuntimeError):
        return bool(_MEMORY.search(str(error)))
    return isinstance(error, (MemoryError, OverflowError))
