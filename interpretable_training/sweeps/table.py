"""What came out of a sweep, as a table for people and one for programs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from interpretable_training.text_tables import csv_text

from .file import Choice, Range, Sweep
from .study import Study, run_folder

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "queued",
}


@dataclass(frozen=True)
class Row:
    """A run: its parameters by their dotted names, what it reached, and where its files are."""

    number: int
    parameters: dict[str, Any]
    value: float | None
    state: str
    folder: Path


def rows(study: Study) -> list[Row]:
    """All runs, the best ones first."""
    assert study.folder is not None
    found = []
    for trial in study.trials():
        value = trial.value if study.sweep.metric and trial.values else None
        found.append(
            Row(trial.number, study.flat(trial), value, STATES[trial.state], run_folder(study.folder, trial.number))
        )
    sign = -1 if study.sweep.maximize else 1
    order = list(STATES.values())
    return sorted(found, key=lambda row: (order.index(row.state), sign * (row.value or 0), row.number))


def columns(sweep: Sweep) -> list[str]:
    """Names of the parameters that vary."""
    return [parameter.name for parameter in sweep.parameters if parameter.varies]


def to_text(found: list[Row], sweep: Sweep, most: int = 40) -> str:
    """A table with aligned columns, and the best run below it."""
    names = columns(sweep)
    cells = [["run", *names, *([sweep.metric] if sweep.metric else []), "state", "folder"]]
    for row in found[:most]:
        value = [short(row.value)] if sweep.metric else []
        cells.append(
            [str(row.number), *(short(row.parameters.get(n)) for n in names), *value, row.state, str(row.folder)]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    if len(found) > most:
        lines.append(f"... and {len(found) - most} more")
    if sweep.metric and found and found[0].state == "finished":
        best = found[0]
        settings = "  ".join(f"{name}={short(best.parameters[name])}" for name in names)
        lines += ["", f"best: run {best.number}, {sweep.metric} {short(best.value)}, with {settings}"]
    return "\n".join(lines)


def to_csv(found: list[Row], sweep: Sweep) -> str:
    """All parameters and full numbers; lists and mappings as JSON."""
    names = [parameter.name for parameter in sweep.parameters]
    lines: list[list[Any]] = [["run", *names, sweep.metric or "metric", "state", "folder"]]
    for row in found:
        values = [row.parameters.get(name) for name in names]
        values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
        lines.append([row.number, *values, row.value, row.state, row.folder])
    return csv_text(lines)


def draw(found: list[Row], sweep: Sweep, path: Path) -> bool:
    """Write the picture, if there is something to compare; return whether there was."""
    varied = [parameter for parameter in sweep.parameters if parameter.varies]
    runs = [(row.parameters, row.value) for row in found if row.value is not None]
    if not varied or len(runs) < 2:
        return False
    from interpretable_training.visual.sweep_plots import Scale, draw_sweep  # here, because it takes seconds

    scales = []
    for parameter in varied:
        domain = parameter.domain
        values = domain.values if isinstance(domain, Choice) else None
        scales.append(Scale(parameter.name, values, isinstance(domain, Range) and domain.log))
    draw_sweep(scales, runs, sweep.metric, path)
    return True


def short(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
