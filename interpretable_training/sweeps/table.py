"""Results of a sweep as a table in text, in CSV, and as a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from interpretable_training.text_tables import csv_text

from .file import Sweep
from .parameters import Choice, Interval
from .study import SweepStudy, sweep_run_folder

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "queued",
}


@dataclass(frozen=True)
class Row:
    """Run of a sweep: parameters by their dotted names, metric, state and folder."""

    number: int
    parameters: dict[str, Any]
    value: float | None
    state: str
    folder: Path


def rows(study: SweepStudy) -> list[Row]:
    """Return all runs, the best ones first."""
    assert study.folder is not None
    results = []
    for trial in study.trials():
        value = trial.value if study.sweep.metric and trial.values else None
        results.append(
            Row(
                trial.number,
                study.flat(trial),
                value,
                STATES[trial.state],
                sweep_run_folder(study.folder, trial.number),
            )
        )
    sign = -1 if study.sweep.maximize else 1
    order = list(STATES.values())
    return sorted(results, key=lambda row: (order.index(row.state), sign * (row.value or 0), row.number))


def columns(sweep: Sweep) -> list[str]:
    """Return the names of the parameters that vary."""
    return [parameter.name for parameter in sweep.parameters if parameter.varies]


def runs_to_text(results: list[Row], sweep: Sweep, most: int = 40) -> str:
    """Return a table with aligned columns, and the best run below it."""
    names = columns(sweep)
    cells = [["run", *names, *([sweep.metric] if sweep.metric else []), "state", "folder"]]
    for row in results[:most]:
        value = [short_value(row.value)] if sweep.metric else []
        cells.append(
            [str(row.number), *(short_value(row.parameters.get(n)) for n in names), *value, row.state, str(row.folder)]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    if len(results) > most:
        lines.append(f"... and {len(results) - most} more")
    if sweep.metric and results and results[0].state == "finished":
        best = results[0]
        settings = "  ".join(f"{name}={short_value(best.parameters[name])}" for name in names)
        lines += ["", f"best: run {best.number}, {sweep.metric} {short_value(best.value)}, with {settings}"]
    return "\n".join(lines)


def runs_to_csv(results: list[Row], sweep: Sweep) -> str:
    """Return all parameters and unrounded numbers; lists and mappings as JSON."""
    names = [parameter.name for parameter in sweep.parameters]
    lines: list[list[Any]] = [["run", *names, sweep.metric or "metric", "state", "folder"]]
    for row in results:
        values = [row.parameters.get(name) for name in names]
        values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
        lines.append([row.number, *values, row.value, row.state, row.folder])
    return csv_text(lines)


def draw_runs(results: list[Row], sweep: Sweep, path: Path) -> bool:
    """Draw the runs if at least two differ; return whether they did."""
    varied = [parameter for parameter in sweep.parameters if parameter.varies]
    runs = [(row.parameters, row.value) for row in results if row.value is not None]
    if not varied or len(runs) < 2:
        return False
    from interpretable_training.visual.sweep_plots import Scale, draw_sweep  # here, because it takes seconds

    scales = []
    for parameter in varied:
        domain = parameter.domain
        values = domain.values if isinstance(domain, Choice) else None
        scales.append(Scale(parameter.name, values, isinstance(domain, Interval) and domain.log))
    draw_sweep(scales, runs, sweep.metric, path)
    return True


def short_value(value: Any) -> str:
    """Return a value in a few digits."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
