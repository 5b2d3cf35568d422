"""Parameters of a sweep file: names, values and ranges, with the distributions of Weights & Biases."""

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from interpretable_training.cli.integers import LARGEST

MOST_POINTS = 100_000
MOST_EXACT = 2**53  # beyond, floats skip whole numbers
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
RANGES = {  # distribution -> keys besides min and max
    "int_uniform": set(),
    "uniform": set(),
    "q_uniform": {"q"},
    "log_uniform": set(),
    "log_uniform_values": set(),
    "inv_log_uniform": set(),
    "inv_log_uniform_values": set(),
    "q_log_uniform_values": {"q"},
}
DISTRIBUTIONS = ["categorical", "constant", *RANGES]


@dataclass(frozen=True)
class Choice:
    """Choice between values; a constant is a choice of one."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, multiples of `q` if that is given."""

    low: float
    high: float
    log: bool = False
    q: float | None = None


@dataclass(frozen=True)
class Parameter:
    """Parameter and its values; `path` has more than one name where parameters are nested."""

    path: tuple[str, ...]
    domain: Choice | Interval

    @property
    def name(self) -> str:
        """Return the names of the path with dots between them."""
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        """Whether it has more than one value."""
        return isinstance(self.domain, Interval) or len(self.domain.values) > 1


def known_keys(value: Any, place: str, known: set[str]) -> dict[str, Any]:
    """Return a mapping that has known keys only; raise for other keys."""
    if not isinstance(value, dict):
        raise ValueError(f"expected keys {sorted(known)} {place}, got {value!r}; see docs/sweeps.md.")
    if others := [key for key in value if key not in known]:
        raise ValueError(
            f"expected keys of {sorted(known)} {place}, got {others}, which are not known here; leave them out."
        )
    return value


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """Return a whole number; raise for others, and for numbers out of range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ValueError(f"expected a whole number from {least} to {LARGEST} for {name!r}, got {value!r}; write one.")
    return value


def read_parameters(content: Any, grid: bool, parents: tuple[str, ...] = ()) -> list[Parameter]:
    """Return all parameters, nested ones too."""
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"expected names and values below {'.'.join((*parents, 'parameters'))!r}, got {content!r}; add some."
        )
    parameters: list[Parameter] = []
    for key, value in content.items():
        if not isinstance(key, str) or not NAME.fullmatch(key):
            raise ValueError(
                f"expected a parameter's name of letters, digits, '_', '.' and '-', got {key!r}; rename it."
            )
        path = (*parents, key)
        if isinstance(value, dict) and set(value) == {"parameters"}:
            parameters += read_parameters(value["parameters"], grid, path)
        else:
            parameters.append(Parameter(path, read_domain(value, ".".join(path), grid)))
    names = [parameter.name for parameter in parameters]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected each parameter once, got {double} more than once; write it nested or with dots.")
    return parameters


def read_domain(content: Any, name: str, grid: bool) -> Choice | Interval:
    """Return the values of a parameter."""
    keys = {"value", "values", "min", "max", "q", "distribution"}
    content = known_keys(content, f"of the parameter {name!r}", keys)
    kind = content.get("distribution") or implied_distribution(content, name)
    if kind not in DISTRIBUTIONS:
        raise ValueError(
            f"expected a distribution of {DISTRIBUTIONS} for {name!r}, got {kind!r}, which Optuna does not have; "
            "use another."
        )
    needed = {"value"} if kind == "constant" else {"values"} if kind == "categorical" else {"min", "max"}
    given = set(content) - {"distribution"}
    if not needed <= given <= needed | RANGES.get(kind, set()):
        raise ValueError(f"expected {sorted(needed)} for {name!r} with {kind}, got {sorted(given)}; write these keys.")
    if kind in RANGES:
        domain = read_range(content, name, kind)
        return on_a_grid(domain, name, kind) if grid else domain if domain.q is None else rounded(domain, name)
    values = [content["value"]] if kind == "constant" else content["values"]
    if not isinstance(values, list) or not values:
        raise ValueError(f"expected a list of 'values' for {name!r}, got {values!r}; write [a, b].")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError(f"expected different values for {name!r}, got {values}; leave out what is equal.")
    try:
        json.dumps(values)
    except TypeError as error:
        raise ValueError(f"expected plain values for {name!r}, got {values}; put dates in quotes.") from error
    return Choice(tuple(values))


def implied_distribution(content: dict[str, Any], name: str) -> str:
    """Return the distribution that the keys of a parameter imply."""
    if "value" in content:
        return "constant"
    if "values" in content:
        return "categorical"
    if {"min", "max"} <= set(content):
        return "int_uniform" if all(type(content[key]) is int for key in ("min", "max")) else "uniform"
    raise ValueError(
        f"expected 'values', 'value', or 'min' and 'max' for the parameter {name!r}, got {sorted(content)}; add them."
    )


def read_range(content: dict[str, Any], name: str, kind: str) -> Interval:
    """Return the bounds of the values that runs get."""
    for key in sorted(set(content) - {"distribution"}):
        value = content[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST_EXACT:
            hint = (
                "; YAML reads 1e-3 as text, write 1.0e-3"
                if isinstance(value, str)
                else f"; write one of at most {MOST_EXACT}"
            )
            raise ValueError(f"expected a number for {key!r} of {name!r}, got {value!r}{hint}.")
    low, high, q = content["min"], content["max"], content.get("q", 1)
    if low >= high:
        raise ValueError(f"expected min < max for {name!r}, got {low} and {high}; exchange or change them.")
    if kind == "int_uniform":
        if not (type(low) is int and type(high) is int):
            raise ValueError(
                f"expected whole numbers for {name!r} with int_uniform, got {low} and {high}; use uniform."
            )
        return Interval(low, high, q=1)
    if kind in ("log_uniform", "inv_log_uniform"):  # exponents
        low, high = (low, high) if kind == "log_uniform" else (-high, -low)
        return Interval(math.exp(low), math.exp(high), log=True)
    log = kind.endswith("_values")
    if log and low <= 0:
        raise ValueError(f"expected min > 0 for {name!r} with {kind}, got {low}; a logarithm needs it.")
    if not kind.startswith("q_"):
        return Interval(low, high, log)
    if q <= 0:
        raise ValueError(f"expected q > 0 for {name!r}, got {q}; values are multiples of it.")
    return Interval(low, high, log, q)


def rounded(domain: Interval, name: str) -> Interval:
    """Return the interval from its first to its last multiple of q."""
    assert domain.q is not None
    first, last = math.ceil(domain.low / domain.q - 1e-9), math.floor(domain.high / domain.q + 1e-9)
    if first > last:
        raise ValueError(f"expected a multiple of q between min and max of {name!r}, got {domain}; choose a smaller q.")
    return replace(domain, low=round(first * domain.q, 12), high=round(last * domain.q, 12))


def on_a_grid(domain: Interval, name: str, kind: str) -> Choice:
    """Return the values one by one, as W&B counts them: int_uniform ends with max, q_uniform before it."""
    if domain.log or domain.q is None:
        raise ValueError(
            f"expected values, int_uniform or q_uniform for {name!r} with the method grid, got {kind}; list its "
            "values, or use random."
        )
    count = math.ceil((domain.high - domain.low) / domain.q) + (kind == "int_uniform")
    if count > MOST_POINTS:
        raise ValueError(
            f"expected at most {MOST_POINTS} values of {name!r} on a grid, got {count}; use random, or a larger q."
        )
    return Choice(tuple(round(domain.low + k * domain.q, 12) for k in range(count)))
