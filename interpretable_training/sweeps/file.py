"""Sweep files in the format of Weights & Biases, read and checked before anything runs.

What W&B's own schema refuses is refused here too, and so is what a local sweep cannot do, each by its name.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ADDRESS = {"apiVersion", "kind", "name", "description", "project", "entity"}  # for the web pages; nothing to do here
KEYS = {"program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"}
METHODS = ["grid", "random", "bayes"]
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
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
    """One of some values; a constant is a choice of one."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, multiples of `q` if that is given."""

    low: float
    high: float
    log: bool = False
    q: float | None = None


@dataclass(frozen=True)
class Parameter:
    """What is varied; `path` has more than one name where parameters are nested."""

    path: tuple[str, ...]
    domain: Choice | Range

    @property
    def name(self) -> str:
        """The names of the path with dots between them."""
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        """Whether it has more than one value."""
        return isinstance(self.domain, Range) or len(self.domain.values) > 1


@dataclass(frozen=True)
class Halving:
    """Runs are compared after `first` values of the metric, `first` * `eta`, ... up to `last` values."""

    first: int
    eta: int
    last: float = math.inf


@dataclass(frozen=True)
class Sweep:
    """A sweep file. `metric` is empty where the file names none."""

    method: str
    parameters: tuple[Parameter, ...]
    program: str = ""
    command: tuple[Any, ...] = COMMAND
    metric: str = ""
    maximize: bool = False
    halving: Halving | None = None
    run_cap: int | None = None
    definition: str = ""

    @property
    def points(self) -> float:
        """How many different runs there are."""
        if self.method != "grid":
            return math.inf
        counts: list[int] = [len(p.domain.values) for p in self.parameters if isinstance(p.domain, Choice)]
        return math.prod(counts)


def read_sweep(path: str | Path) -> Sweep:
    """Read a file.

    Args:
        path: A YAML file as `wandb sweep` takes it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected a sweep in YAML, got {str(path)!r}: {reason}; macros such as ${{args}} stand one below the "
            "other behind a dash, or in quotes."
        ) from error
    content = known_keys(content, f"in {str(path)!r}", KEYS | ADDRESS)
    method = content.get("method")
    if method not in METHODS:
        raise ValueError(f"expected a method of {METHODS}, got {method!r}; others need W&B's server.")
    metric = known_keys(content.get("metric", {}), "of 'metric'", {"name", "goal"})
    if metric and not (isinstance(metric.get("name"), str) and metric["name"]):
        raise ValueError(f"expected a name of the metric, got {metric}; write what the runs log, such as val/accuracy.")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ValueError(f"expected the goal 'minimize' or 'maximize', got {metric['goal']!r}; mend 'metric'.")
    halving = read_halving(content["early_terminate"]) if "early_terminate" in content else None
    if not metric and (method == "bayes" or halving):
        what = "bayes" if method == "bayes" else "early_terminate"
        raise ValueError(f"expected a metric for {what}, got none; add metric: {{name: ..., goal: ...}}.")
    return Sweep(
        method=method,
        parameters=tuple(read_parameters(content.get("parameters"), method == "grid")),
        **read_command(content),
        metric=metric.get("name", ""),
        maximize=metric.get("goal") == "maximize",
        halving=halving,
        run_cap=whole(content["run_cap"], "run_cap") if "run_cap" in content else None,
        # What has to stay as it is when a sweep goes on; the cap may be raised.
        definition=json.dumps({key: content[key] for key in KEYS - {"run_cap"} if key in content}, sort_keys=True),
    )


def known_keys(value: Any, place: str, known: set[str]) -> dict[str, Any]:
    """A mapping with no other keys than those."""
    if not isinstance(value, dict):
        raise ValueError(f"expected keys {sorted(known)} {place}, got {value!r}; see docs/sweeps.md.")
    if others := [key for key in value if key not in known]:
        raise ValueError(
            f"expected keys of {sorted(known)} {place}, got {others}, which are not known here; leave them out."
        )
    return value


def whole(value: Any, name: str, least: int = 1) -> int:
    """A whole number, not too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected a whole number >= {least} for {name!r}, got {value!r}; write one.")
    return value


def read_command(content: dict[str, Any]) -> dict[str, Any]:
    """Program and command."""
    program, command = content.get("program", ""), content.get("command", [*COMMAND])
    if not isinstance(program, str):
        raise ValueError(f"expected a file name for 'program', got {program!r}; write one.")
    if not isinstance(command, list) or not command:
        raise ValueError(f"expected a list of words for 'command', got {command!r}; write one word a line.")
    if not program and "${program}" in command:
        raise ValueError("expected the key 'program', got none; ${program} in the command (the default) needs it.")
    return {"program": program, "command": tuple(command)}


def read_halving(content: Any) -> Halving:
    """When runs are compared."""
    content = known_keys(content, "of 'early_terminate'", {"type", "min_iter", "max_iter", "s", "eta"})
    if content.get("type") != "hyperband":
        raise ValueError(
            f"expected early_terminate of type 'hyperband', got {content.get('type')!r}; there is no other."
        )
    eta = whole(content.get("eta", 3), "eta", 2)
    if "max_iter" in content:
        if "s" not in content:
            raise ValueError(f"expected 's' beside 'max_iter', got {content}; add it, or give 'min_iter' alone.")
        last, s = whole(content["max_iter"], "max_iter"), whole(content["s"], "s")
        bands = [last // eta**k for k in range(1, s + 1) if last >= eta**k]
        if not bands:
            raise ValueError(f"expected max_iter >= eta, got {last} and {eta}; there is nothing to compare before.")
        return Halving(bands[-1], eta, bands[0])
    if "min_iter" not in content:
        raise ValueError(f"expected 'min_iter', or 'max_iter' and 's', got {sorted(content)}; add them.")
    return Halving(whole(content["min_iter"], "min_iter"), eta)


def read_parameters(content: Any, grid: bool, parents: tuple[str, ...] = ()) -> list[Parameter]:
    """All parameters, those in nested ones too."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"expected names and values below {'.'.join((*parents, 'parameters'))!r}, got {content!r}.")
    found: list[Parameter] = []
    for key, value in content.items():
        if not isinstance(key, str) or not NAME.fullmatch(key):
            raise ValueError(f"expected a parameter's name of letters, digits, '_', '.' and '-', got {key!r}.")
        path = (*parents, key)
        if isinstance(value, dict) and set(value) == {"parameters"}:
            found += read_parameters(value["parameters"], grid, path)
        else:
            found.append(Parameter(path, read_domain(value, ".".join(path), grid)))
    names = [parameter.name for parameter in found]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected each parameter once, got {double} more than once; write it nested or with dots.")
    return found


def read_domain(content: Any, name: str, grid: bool) -> Choice | Range:
    """The values of a parameter."""
    keys = {"value", "values", "min", "max", "q", "distribution"}
    content = known_keys(content, f"of the parameter {name!r}", keys)
    kind = content.get("distribution") or distribution(content, name)
    if kind not in DISTRIBUTIONS:
        raise ValueError(
            f"expected a distribution of {DISTRIBUTIONS} for {name!r}, got {kind!r}, which Optuna has no equal of; "
            "use another."
        )
    needed = {"value"} if kind == "constant" else {"values"} if kind == "categorical" else {"min", "max"}
    given = set(content) - {"distribution"}
    if not needed <= given <= needed | RANGES.get(kind, set()):
        raise ValueError(f"expected {sorted(needed)} for {name!r} with {kind}, got {sorted(given)}; mend it.")
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


def distribution(content: dict[str, Any], name: str) -> str:
    """What is meant where the file does not say it."""
    if "value" in content:
        return "constant"
    if "values" in content:
        return "categorical"
    if {"min", "max"} <= set(content):
        return "int_uniform" if all(type(content[key]) is int for key in ("min", "max")) else "uniform"
    raise ValueError(
        f"expected 'values', 'value', or 'min' and 'max' for the parameter {name!r}, got {sorted(content)}; add them."
    )


def read_range(content: dict[str, Any], name: str, kind: str) -> Range:
    """Bounds as the values that a run gets, whatever way the file gives them."""
    for key in sorted(set(content) - {"distribution"}):
        value = content[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if isinstance(value, str) else "; write one"
            raise ValueError(f"expected a number for {key!r} of {name!r}, got {value!r}{hint}.")
    low, high, q = content["min"], content["max"], content.get("q", 1)
    if low >= high:
        raise ValueError(f"expected min < max for {name!r}, got {low} and {high}; mend them.")
    if kind == "int_uniform":
        if not (type(low) is int and type(high) is int):
            raise ValueError(
                f"expected whole numbers for {name!r} with int_uniform, got {low} and {high}; use uniform."
            )
        return Range(low, high, q=1)
    if kind in ("log_uniform", "inv_log_uniform"):  # exponents
        low, high = (low, high) if kind == "log_uniform" else (-high, -low)
        return Range(math.exp(low), math.exp(high), log=True)
    log = kind.endswith("_values")
    if log and low <= 0:
        raise ValueError(f"expected min > 0 for {name!r} with {kind}, got {low}; a logarithm needs it.")
    if not kind.startswith("q_"):
        return Range(low, high, log)
    if q <= 0:
        raise ValueError(f"expected q > 0 for {name!r}, got {q}; values are multiples of it.")
    return Range(low, high, log, q)


def rounded(domain: Range, name: str) -> Range:
    """The same from its first to its last multiple of q."""
    assert domain.q is not None
    first, last = math.ceil(domain.low / domain.q - 1e-9), math.floor(domain.high / domain.q + 1e-9)
    if first > last:
        raise ValueError(f"expected a multiple of q between min and max of {name!r}, got {domain}; choose a smaller q.")
    return replace(domain, low=round(first * domain.q, 12), high=round(last * domain.q, 12))


def on_a_grid(domain: Range, name: str, kind: str) -> Choice:
    """The values one by one, as W&B counts them: int_uniform ends with max, q_uniform before it."""
    if domain.log or domain.q is None:
        raise ValueError(
            f"expected values, int_uniform or q_uniform for {name!r} with the method grid, got {kind}; list its "
            "values, or use random."
        )
    count = math.ceil((domain.high - domain.low) / domain.q) + (kind == "int_uniform")
    return Choice(tuple(round(domain.low + k * domain.q, 12) for k in range(count)))
