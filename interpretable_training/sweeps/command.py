"""The command line of a run, from the macros of a sweep file: what `wandb agent` makes of them."""

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
    """The parameters of a run in each of the forms that a command can ask for.

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
    """The words of a run's command.

    Args:
        command: Words and macros, as in the file.
        program: What stands for `${program}`.
        values: Parameter -> value.
        json_file: What stands for `${args_json_file}`.
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
        found = MACRO.fullmatch(word)
        if found and found[1] not in macros:
            raise ValueError(f"expected a macro of {sorted(macros)}, got {word!r} in the command; mend it.")
        if not found and (inside := [name for name in MACRO.findall(word) if name in macros]):
            raise ValueError(
                f"expected the macro ${{{inside[0]}}} as a word of its own, got {word!r}, which `wandb agent` leaves "
                "as it is; split it."
            )
        words += macros[found[1]] if found else [word]
    return words


def variable(found: re.Match[str]) -> str:
    """The value of an environment variable."""
    if found[1] not in os.environ:
        raise ValueError(f"expected the environment variable {found[1]!r}, which the command names, got none; set it.")
    return os.environ[found[1]]
