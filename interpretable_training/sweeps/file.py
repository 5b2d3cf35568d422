"""Sweep files in the format of Weights & Biases, read and checked before anything runs.

Keys and values that W&B's schema or a local sweep does not allow are errors that name them.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from interpretable_training.cli.yaml_growth import refuse_growth

from .parameters import Choice, Parameter, known_keys, read_parameters, whole_number

ADDRESS = {
    "apiVersion",
    "kind",
    "name",
    "description",
    "project",
    "entity",
}  # for the web pages; not used in a local sweep
KEYS = {"program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"}
METHODS = ["grid", "random", "bayes"]
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")


@dataclass(frozen=True)
class Halving:
    """Runs are compared after `first` values of the metric, `first` * `eta`, ... up to `last` values."""

    first: int
    eta: int
    last: float = math.inf


@dataclass(frozen=True)
class Sweep:
    """Contents of a sweep file. `metric` is empty where the file names none."""

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
        """Return the number of different runs."""
        if self.method != "grid":
            return math.inf
        counts: list[int] = [len(p.domain.values) for p in self.parameters if isinstance(p.domain, Choice)]
        return math.prod(counts)


def read_sweep(path: str | Path) -> Sweep:
    """Return the sweep that a file describes; raise for anything in it that cannot be run.

    Args:
        path: A YAML file in the format of `wandb sweep`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        refuse_growth(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a sweep in UTF-8, got {str(path)!r}: {error}; save it in UTF-8.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected a sweep in YAML, got {str(path)!r}: {reason}; write macros such as ${{args}} on a line each, "
            "after a dash, or in quotes."
        ) from error
    content = known_keys(content, f"in {str(path)!r}", KEYS | ADDRESS)
    method = content.get("method")
    if method not in METHODS:
        raise ValueError(f"expected a method of {METHODS}, got {method!r}; others need W&B's server.")
    metric = known_keys(content.get("metric", {}), "of 'metric'", {"name", "goal"})
    if metric and not (isinstance(metric.get("name"), str) and metric["name"]):
        raise ValueError(f"expected a name of the metric, got {metric}; write what the runs log, such as val/accuracy.")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ValueError(f"expected the goal 'minimize' or 'maximize', got {metric['goal']!r}; write one of these.")
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
        run_cap=whole_number(content["run_cap"], "run_cap") if "run_cap" in content else None,
        # A sweep goes on only with the same definition; the cap may change.
        definition=json.dumps({key: content[key] for key in KEYS - {"run_cap"} if key in content}, sort_keys=True),
    )


def read_command(content: dict[str, Any]) -> dict[str, Any]:
    """Return program and command."""
    program, command = content.get("program", ""), content.get("command", [*COMMAND])
    if not isinstance(program, str):
        raise ValueError(f"expected a file name for 'program', got {program!r}; write one.")
    if not isinstance(command, list) or not command:
        raise ValueError(f"expected a list of words for 'command', got {command!r}; write one word a line.")
    if not program and "${program}" in command:
        raise ValueError("expected the key 'program', got none; ${program} in the command (the default) needs it.")
    return {"program": program, "command": tuple(command)}


def read_halving(content: Any) -> Halving:
    """Return when runs are compared."""
    content = known_keys(content, "of 'early_terminate'", {"type", "min_iter", "max_iter", "s", "eta"})
    if content.get("type") != "hyperband":
        raise ValueError(f"expected early_terminate of type 'hyperband', got {content.get('type')!r}; write that one.")
    eta = whole_number(content.get("eta", 3), "eta", 2)
    if "max_iter" in content:
        if "s" not in content:
            raise ValueError(f"expected 's' beside 'max_iter', got {content}; add it, or give 'min_iter' alone.")
        last, s = whole_number(content["max_iter"], "max_iter"), whole_number(content["s"], "s")
        bands = [last // eta**k for k in range(1, s + 1) if last >= eta**k]
        if not bands:
            raise ValueError(f"expected max_iter >= eta, got {last} and {eta}; pass a larger max_iter.")
        return Halving(bands[-1], eta, bands[0])
    if "min_iter" not in content:
        raise ValueError(f"expected 'min_iter', or 'max_iter' and 's', got {sorted(content)}; add them.")
    return Halving(whole_number(content["min_iter"], "min_iter"), eta)
