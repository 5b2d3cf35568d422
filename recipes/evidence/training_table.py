"""Compare ways to train, from the storage of the sweep `configs/sweeps/training_methods.yaml`, which this runs."""

import json
import math
import os
import statistics
from pathlib import Path
from typing import Any, get_args

from interpretable_training.cli.configs import find_config
from interpretable_training.data import DigitsDataModule, ShapesDataModule
from interpretable_training.files import csv_text, write_whole
from interpretable_training.recipes.evidence.training_run import Pictures, TrainingMethod
from interpretable_training.recipes.repair import half_width, mean_and_interval
from interpretable_training.sweeps.file import read_sweep
from interpretable_training.sweeps.local import SweepOptions, run_sweep

SWEEP = "training_methods"
COLUMNS = {
    "accuracy": "same",
    "wrong cues": "swapped",
    "worst group": "worst group",
    "drop": "drop",
    "gain": "gain",
    "insertion - deletion": "insertion - deletion",
    "energy on object": "energy on object",
    "SSIM, random layers": "randomization",
    "confidence": "confidence",
    "cost": "cost",
}
GAINS = ("accuracy", "wrong cues", "drop", "gain", "insertion - deletion", "energy on object")
Runs = dict[tuple[str, str], dict[int, dict[str, float]]]  # data, method -> seed -> numbers


def training_tables(folder: Path, output: Path) -> dict[str, list[list[str]]]:
    """Run what is missing, write the numbers of each run, and return the rows of the tables."""
    options = SweepOptions(SWEEP, jobs=os.cpu_count() or 1, output=str(folder))
    if run_sweep(options) == 130:
        raise KeyboardInterrupt
    runs = with_costs(stored_runs(folder))
    write_whole(output / "training_runs.csv", csv_text(raw_rows(runs)))
    runs = learned(runs)
    return {"training": table_rows(runs), "training_gains": gain_rows(runs)}


def stored_runs(folder: Path) -> Runs:
    """Return the numbers of all runs of the sweep's study that have ended; none of those that ended with an error."""
    from interpretable_training.sweeps.study import SweepStudy  # here: needs Optuna
    from interpretable_training.sweeps.table import rows

    study, found = SweepStudy(read_sweep(find_config(SWEEP, "sweeps")), 0, folder), Runs()
    for row in rows(study):
        if row.state not in ("finished", "failed"):  # of another process
            continue
        seeds = found.setdefault((row.parameters["data"], row.parameters["method"]), {})
        written = row.folder / "metrics.jsonl"
        seeds[row.parameters["seed"]] = json.loads(written.read_text("utf-8")) if row.state == "finished" else {}
    study.leave()
    return found


def learned(runs: Runs) -> Runs:
    """Return the runs, without numbers where the accuracy is not at least twice that of chance."""
    kept = Runs()
    for (data, method), seeds in runs.items():
        classes = DigitsDataModule.num_classes if "digits" in data else ShapesDataModule.num_classes
        enough = 200 / classes  # no number is not enough either
        kept[data, method] = {seed: n if n and n["same"] >= enough else {} for seed, n in seeds.items()}
    return kept


def with_costs(runs: Runs) -> Runs:
    """Return the runs with their seconds as multiples of those of plain training with the same seed."""
    for (data, _), seeds in runs.items():
        for seed, numbers in seeds.items():
            if numbers and (plain := runs.get((data, "plain"), {}).get(seed)):
                numbers["cost"] = numbers["seconds"] / plain["seconds"]
    return runs


def known_cells(runs: Runs) -> list[tuple[str, str]]:
    """Return data and methods in the order of the table."""
    order = [(data, method) for data in get_args(Pictures) for method in get_args(TrainingMethod)]
    return [cell for cell in order if cell in runs]


def table_rows(runs: Runs) -> list[list[str]]:
    """Return means over the runs that did not fail, and the number of those that did."""
    table = [["data", "method", *COLUMNS, "failed"]]
    for data, method in known_cells(runs):
        done = [numbers for numbers in runs[data, method].values() if numbers]
        columns = [[n[key] for n in done if math.isfinite(n.get(key, math.nan))] for key in COLUMNS.values()]
        failed = f"{len(runs[data, method]) - len(done)} of {len(runs[data, method])}"
        table.append([data, method, *(mean_and_interval(c) if c else "" for c in columns), failed])
    return table


def gain_rows(runs: Runs) -> list[list[str]]:
    """Return the differences from plain training with the same seeds; those whose interval leaves out 0 in bold."""
    table = [["data", "method", *GAINS]]
    for data, method in known_cells(runs):
        if method != "plain":
            plain, own = runs.get((data, "plain"), {}), runs[data, method]
            both = [(own[seed], plain[seed]) for seed in own if own[seed] and plain.get(seed)]
            keys = [COLUMNS[name] for name in GAINS]
            table.append([data, method, *(difference([(n[k], p[k]) for n, p in both if k in n]) for k in keys)])
    return table


def difference(pairs: list[tuple[float, float]]) -> str:
    """Return the mean difference with its interval, in bold where 0 is outside of it."""
    if len(pairs) < 2:
        return ""
    values = [a - b for a, b in pairs]
    text = mean_and_interval(values)
    return f"**{text}**" if abs(statistics.mean(values)) > half_width(values) else text


def raw_rows(runs: Runs) -> list[list[Any]]:
    """Return the numbers of each run."""
    names = list(dict.fromkeys(name for seeds in runs.values() for numbers in seeds.values() for name in numbers))
    table: list[list[Any]] = [["data", "method", "seed", *names]]
    for data, method in known_cells(runs):
        for seed, numbers in sorted(runs[data, method].items()):
            table.append([data, method, seed, *(f"{numbers[n]:.6g}" if n in numbers else "" for n in names)])
    return table
