"""Command line of a run: the macros of a sweep file, expanded as by `wandb agent`."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
MACRO = re.compile(r"\$\{(\w+)\}")


def argument_macros(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the parameters of a run in each form that a command can contain.

    Args:
        values: Parameter -> value.
    """
    pairs = [f"{name}={value}" for name, value in values.items()]
    return {
        "args": [f"--{pair}" for pair in pairs],
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_hyphens": pairs,
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{pair}"
            for (name, value), pair in zip(values.items(), pairs)
            if value is not False
        ],
        "args_json": [json.dumps(dict(values))],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
    }


def command_line(command: Sequence[Any], program: str, values: Mapping[str, Any], json_file: Path) -> list[str]:
    """Return the words of a run's command.

    Args:
        command: Words and macros, as in the file.
        program: Replacement of `${program}`.
        values: Parameter -> value.
        json_file: Replacement of `${args_json_file}`.
    """
    macros = argument_macros(values)
    macros |= {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [sys.executable],
        "program": [program],
        "args_json_file": [str(json_file)],
    }
    words: list[str] = []
    for chunk in command:
        word = VARIABLE.sub(variable, str(chunk))
        macro = MACRO.fullmatch(word)
        if macro and macro[1] not in macros:
            raise ValueError(f"expected a macro of {sorted(macros)}, got {word!r} in the command; write one of these.")
        if not macro and (inside := [name for name in MACRO.findall(word) if name in macros]):
            raise ValueError(
                f"expected the macro ${{{inside[0]}}} as a separate word, got {word!r}, which `wandb agent` leaves "
                "as it is; split it."
            )
        words += macros[macro[1]] if macro else [word]
    return words


def variable(match: re.Match[str]) -> str:
    """Return the value of an environment variable."""
    if match[1] not in os.environ:
        raise ValueError(f"expected the environment variable {match[1]!r}, which the command names, got none; set it.")
    return os.environ[match[1]]
