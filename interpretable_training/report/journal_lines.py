"""Contents of journal lines, kind by kind. The reader skips lines with other contents."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
DEEPEST = 16  # lists and mappings in each other; settings have five
LARGEST = 2**53  # of whole numbers that a page counts with
FILE = re.compile(r"[a-z]+/[a-z0-9_~-]+\.png")  # relative to the folder, and inside of it


def read_line(text: bytes) -> dict[str, Any] | None:
    """A line of a journal; None where it is broken."""
    try:
        line = json.loads(text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if not (is_plain(line) and LINE(line)):
        return None
    check = KINDS.get(line["kind"])  # of other kinds, which a later version may have, nothing is read
    return line if check is None or check(line) else None


def refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(constant)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value can go into a page: not nested without end, and of numbers that are finite."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth < DEEPEST and all(is_plain(item, depth + 1) for item in inner)
    if isinstance(value, int):
        return abs(value) <= 2**64  # seeds
    return not isinstance(value, float) or math.isfinite(value)


def name(value: Any) -> bool:
    return text(value) or whole(value)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    return isinstance(value, str)


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(value: Any) -> bool:
    return isinstance(value, int) and number(value) and abs(value) <= LARGEST


def moment(value: Any) -> bool:
    """Seconds since 1970."""
    return number(value) and 0 <= value < 1e11


def side(value: Any) -> bool:
    """Pixels."""
    return whole(value) and 0 < value < 10_000


def place(value: Any) -> bool:
    """The path of a folder."""
    return text(value) and "\0" not in value


def file(value: Any) -> bool:
    """A picture below the journal's folder."""
    return text(value) and FILE.fullmatch(value) is not None


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def maybe(check: Check) -> Check:
    """None, or what the check asks for."""
    return lambda value: value is None or check(value)


def each(check: Check) -> Check:
    """A list of what the check asks for."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def named(check: Check) -> Check:
    """A mapping to what the check asks for."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def holds(required: Mapping[str, Check], optional: Mapping[str, Check] = {}) -> Check:
    """A mapping with the required keys, and what the checks ask for at these and the optional ones."""
    checks = {**required, **optional}

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required.keys() <= value.keys()
            and all(checks[key](item) for key, item in value.items() if key in checks)
        )

    return check


def pair(value: Any) -> bool:
    """A name and a text."""
    return isinstance(value, list) and len(value) == 2 and all(map(text, value))


NUMBERS = named(maybe(number))
VALUES = holds({"values": NUMBERS}, {"callback": text})
MAP = holds(
    {"id": name, "lo": maybe(number), "hi": maybe(number)},
    {key: maybe(number) for key in ("prob", "prob_pred", "loss", "max", "mass", "entropy")}
    | {key: maybe(whole) for key in ("target", "pred", "label")}
    | {"degenerate": maybe(flag)},
)
DRIFT = holds({"id": name}, {key: maybe(NUMBERS) for key in ("previous", "first", "best")})
RANDOMIZED = holds({"method": text, "passed": maybe(flag)}, {"similarity": maybe(NUMBERS), "rule": text})

LINE = holds({"kind": text, "time": moment}, {"run": text, "epoch": maybe(whole), "step": maybe(whole), "stage": text})
KINDS: dict[str, Check] = {
    "run": holds(
        {},
        {
            "classes": maybe(each(name)),
            "model": maybe(text),
            "settings": maybe(mapping),
            "probe": maybe(each(pair)),
        },
    ),
    "image": holds({"id": name, "file": file, "label": maybe(whole)}),
    "maps": holds(
        {"method": text, "view": text, "file": file, "h": side, "w": side, "rows": each(MAP)},
        {"group": text, "weights": text},
    ),
    "values": VALUES,
    "training": VALUES,
    "passport": holds({"metric": text, "facts": mapping}),
    "drift": holds({"method": text, "rows": each(DRIFT)}),
    "alarm": holds({"name": text, "value": maybe(number)}, {"threshold": maybe(number), "message": text}),
    "failure": holds({}, {"callback": text, "reason": text}),
    "dropped": holds({}, {"callback": text, "what": text}),
    "randomization": holds({"rows": each(RANDOMIZED)}),
    "resume": holds({"step": whole}),
    "continued": holds({"step": whole, "folder": place}),
}
