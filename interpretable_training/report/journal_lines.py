"""Contents of journal lines, kind by kind. The reader skips lines with other contents."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .value_readers import Reader, list_of, mapping_of, optional, read_flag, read_integer, read_number, read_text

DEEPEST = 16  # lists and mappings in each other; settings have five
FILE = re.compile(r"[a-z]+/[a-z0-9_~-]+\.png")  # relative to the folder, and inside of it


def read_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of a journal; None where it is broken."""
    try:
        line = json.loads(text.decode(), parse_constant=_refuse)
        if not _is_plain(line):
            return None
        LINE(line)
        if line["kind"] in KINDS:  # the report does not use other kinds, which a later version may write
            KINDS[line["kind"]](line)
    except (TypeError, ValueError, RecursionError):
        return None
    return line


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(constant)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value fits into a page: of limited depth, and with finite numbers only."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth < DEEPEST and all(_is_plain(item, depth + 1) for item in inner)
    if isinstance(value, int):
        return abs(value) <= 2**64  # seeds
    return not isinstance(value, float) or math.isfinite(value)


def _read_name(value: Any) -> str | int:
    """Return a text or a whole number."""
    return value if isinstance(value, str) else read_integer(value)


def _read_time(value: Any) -> float:
    """Return seconds since 1970."""
    if not 0 <= read_number(value) < 1e11:
        raise ValueError(value)
    return float(value)


def _read_side(value: Any) -> int:
    """Return a number of pixels."""
    if not 0 < read_integer(value) < 10_000:
        raise ValueError(value)
    return int(value)


def _read_folder(value: Any) -> str:
    """Return the path of a folder."""
    if "\0" in read_text(value):
        raise ValueError(value)
    return str(value)


def _read_file(value: Any) -> str:
    """Return the path of a picture below the journal's folder."""
    if FILE.fullmatch(read_text(value)) is None:
        raise ValueError(value)
    return str(value)


def _read_mapping(value: Any) -> dict[str, Any]:
    """Return a mapping with any contents."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _read_fact(value: Any) -> list[str]:
    """Return a name and a text."""
    if len(list_of(read_text)(value)) != 2:
        raise ValueError(value)
    return list(value)


def _fields(required: Mapping[str, Reader[Any]], others: Mapping[str, Reader[Any]] = {}) -> Reader[dict[str, Any]]:
    """Return a reader of mappings with the required keys and with values that the readers of the keys accept."""
    readers = {**required, **others}

    def read_fields(value: Any) -> dict[str, Any]:
        if missing := required.keys() - _read_mapping(value).keys():
            raise ValueError(missing)
        return {key: readers[key](item) for key, item in value.items() if key in readers}

    return read_fields


NUMBERS = mapping_of(optional(read_number))
VALUES = _fields({"values": NUMBERS}, {"callback": read_text})
MAP = _fields(
    {"id": _read_name, "lo": optional(read_number), "hi": optional(read_number)},
    {key: optional(read_number) for key in ("prob", "prob_pred", "loss", "max", "mass", "entropy")}
    | {key: optional(read_integer) for key in ("target", "pred", "label")}
    | {"degenerate": optional(read_flag)},
)
DRIFT = _fields({"id": _read_name}, {key: optional(NUMBERS) for key in ("previous", "first", "best")})
RANDOMIZED = _fields(
    {"method": read_text, "passed": optional(read_flag)}, {"similarity": optional(NUMBERS), "rule": read_text}
)

LINE = _fields(
    {"kind": read_text, "time": _read_time},
    {"run": read_text, "epoch": optional(read_integer), "step": optional(read_integer), "stage": read_text},
)
KINDS: dict[str, Reader[Any]] = {
    "run": _fields(
        {},
        {
            "classes": optional(list_of(_read_name)),
            "model": optional(read_text),
            "settings": optional(_read_mapping),
            "probe": optional(list_of(_read_fact)),
        },
    ),
    "image": _fields({"id": _read_name, "file": _read_file, "label": optional(read_integer)}),
    "maps": _fields(
        {
            "method": read_text,
            "view": read_text,
            "file": _read_file,
            "h": _read_side,
            "w": _read_side,
            "rows": list_of(MAP),
        },
        {"group": read_text, "weights": read_text},
    ),
    "values": VALUES,
    "training": VALUES,
    "passport": _fields({"metric": read_text, "facts": _read_mapping}),
    "drift": _fields({"method": read_text, "rows": list_of(DRIFT)}),
    "alarm": _fields(
        {"name": read_text, "value": optional(read_number)}, {"threshold": optional(read_number), "message": read_text}
    ),
    "failure": _fields({}, {"callback": read_text, "reason": read_text}),
    "dropped": _fields({}, {"callback": read_text, "what": read_text}),
    "randomization": _fields({"rows": list_of(RANDOMIZED)}),
    "shortcuts": _fields({"method": read_text, "claimed": read_flag}, {"message": read_text}),
    "cluster": _fields(
        {"method": read_text, "cluster": read_integer, "claimed": read_flag, "facts": NUMBERS},
        {"file": _read_file, "label": optional(read_integer), "shares": list_of(optional(read_number))},
    ),
    "resume": _fields({"step": read_integer}),
    "continued": _fields({"step": read_integer, "folder": _read_folder}),
}
