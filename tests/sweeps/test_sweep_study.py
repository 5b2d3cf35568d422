import json
import math
import os
import subprocess
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from interpretable_training.sweeps import workers as sweep_workers
from interpretable_training.sweeps.file import read_sweep
from interpretable_training.sweeps.study import SweepStudy

METRIC = {"name": "loss"}


@pytest.fixture
def sweep(tmp_path):
    """Makes a sweep of these parameters."""

    def make(parameters, method="grid", **keys):
        content = {"program": "train.py", "method": method, "parameters": parameters, **keys}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
        return read_sweep(tmp_path / "sweep.yaml")

    return make


def drawn(study, total):
    """The parameters of all runs that are left."""
    results = []
    while trial := study.next(total):
        results.append(study.values(trial))
    return results


def as_text(values):
    return sorted(json.dumps(value, sort_keys=True) for value in values)


PARAMETERS = {
    "a": {"values": [0, 0.5, "x", None, [1, 2], {"b": False}]},
    "n": {"parameters": {"flag": {"values": [True, False]}, "fixed": {"value": [3]}}},
    "i": {"min": 1, "max": 2},
}


@pytest.mark.parametrize("kept", [True, False], ids=["file", "memory"])
def test_grid_points_are_run_once_with_their_values(sweep, tmp_path, kept):
    grid = sweep(PARAMETERS)
    expected = [
        {"a": a, "n": {"flag": flag, "fixed": [3]}, "i": i}
        for a in PARAMETERS["a"]["values"]
        for flag in (True, False)
        for i in (1, 2)
    ]
    study = SweepStudy(grid, 0, tmp_path / "out" if kept else None)
    assert as_text(drawn(study, grid.points)) == as_text(expected)
    assert study.next(grid.points) is None


def test_processes_of_one_grid_get_different_points(sweep, tmp_path):
    grid = sweep({"x": {"values": [*range(20)]}})
    studies = [SweepStudy(grid, 0, tmp_path / "out") for _ in range(3)]
    results = [study.values(study.next(grid.points))["x"] for _ in range(6) for study in studies]
    results += [value["x"] for study in studies for value in drawn(study, grid.points)]
    assert sorted(results) == [*range(20)]


RANGES = {
    "u": {"min": -1.0, "max": 1.0},
    "i": {"min": 1, "max": 3},
    "q": {"min": 1, "max": 10, "q": 4, "distribution": "q_uniform"},
    "f": {"min": 0.1, "max": 0.7, "q": 0.2, "distribution": "q_uniform"},
    "log": {"min": 1.0e-4, "max": 1.0, "distribution": "log_uniform_values"},
    "ql": {"min": 1, "max": 100, "q": 5, "distribution": "q_log_uniform_values"},
}


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_ranges_are_kept_and_filled(sweep, method):
    random = sweep(RANGES, method, metric=METRIC)
    values = drawn(SweepStudy(random, 0), 120)
    columns = {name: [value[name] for value in values] for name in RANGES}
    assert all(-1 <= u <= 1 for u in columns["u"])
    assert set(columns["i"]) == {1, 2, 3}
    assert set(columns["q"]) == {4, 8}
    assert {round(f, 6) for f in columns["f"]} == {0.2, 0.4, 0.6}
    assert all(type(value) is int for name in ("i", "q") for value in columns[name])
    assert all(value % 5 == 0 and 5 <= value <= 100 for value in columns["ql"])
    assert sum(value < 0.01 for value in columns["log"]) == pytest.approx(60, abs=25)  # half the decades
    assert sum(value <= 20 for value in columns["ql"]) > 50  # half of 5..100 in decades: up to 22


def test_random_values_depend_on_seed_and_number_only(sweep, tmp_path):
    random = sweep(RANGES, "random")
    together = drawn(SweepStudy(random, 3), 6)
    first = [SweepStudy(random, 3, tmp_path / "out") for _ in range(2)]
    parts = [study.values(study.next(6)) for study in first]
    parts += drawn(SweepStudy(random, 3, tmp_path / "out"), 6)
    assert parts == together
    assert drawn(SweepStudy(random, 4), 6) != together


def test_bayes_comes_closer_to_the_best_value(sweep):
    bayes = sweep({"x": {"min": -10.0, "max": 10.0}}, "bayes", metric=METRIC)
    study = SweepStudy(bayes, 0)
    for _ in range(40):
        trial = study.next(40)
        study.finish(trial.number, TrialState.COMPLETE, (study.values(trial)["x"] - 3) ** 2)
    distance = [abs(trial.params["x"] - 3) for trial in study.trials()]
    assert sum(distance[-20:]) / 20 < sum(distance[:10]) / 20  # half as far away as the first ten, which are random


def test_runs_of_ended_process_are_repeated_once(sweep, tmp_path):
    grid = sweep({"x": {"values": [0, 1, 2, 3, 4]}})
    gone = SweepStudy(grid, 0, tmp_path / "out")
    trials = [gone.next(5) for _ in range(3)]
    gone.finish(trials[0].number, TrialState.COMPLETE, 1.0)
    values = [gone.values(trial)["x"] for trial in trials]
    gone.leave()
    study, other = SweepStudy(grid, 0, tmp_path / "out"), SweepStudy(grid, 0, tmp_path / "out")
    assert study.recover() == 2
    assert other.recover() == 0  # they are in the queue already
    assert study.values(study.next(5))["x"] == values[1]
    assert other.values(other.next(5))["x"] == values[2]
    rest = [value["x"] for value in drawn(study, 5)]
    assert sorted(rest) == sorted({0, 1, 2, 3, 4} - set(values))
    assert len(study.trials()) == 5  # and two attempts that do not count
    assert len(study.study.trials) == 7
    assert not gone.finish(trials[1].number, TrialState.COMPLETE, 1.0)  # it was not gone after all: too late


def test_runs_of_live_process_are_not_repeated(sweep, tmp_path):
    grid = sweep({"x": {"values": [0, 1]}})
    busy = SweepStudy(grid, 0, tmp_path / "out")
    busy.next(2)
    assert SweepStudy(grid, 0, tmp_path / "out").recover() == 0


@pytest.mark.parametrize(("age", "lost"), [(10, 0), (1000, 1)])
def test_silent_process_of_other_machine_counts_as_ended(sweep, tmp_path, age, lost):
    grid = sweep({"x": {"values": [0, 1]}})
    busy = SweepStudy(grid, 0, tmp_path / "out")
    busy.next(2)
    path = busy.worker.path
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1"}))
    os.utime(path, (time.time() - age, time.time() - age))
    assert SweepStudy(grid, 0, tmp_path / "out").recover() == lost


@pytest.mark.parametrize("proc", ["/proc", "/no/proc"], ids=["linux", "macos"])
def test_ended_process_is_recognized(monkeypatch, proc):
    monkeypatch.setattr(sweep_workers, "PROC", Path(proc))
    process = subprocess.Popen(["sleep", "60"])
    alive = sweep_workers.born(process.pid)
    assert alive == sweep_workers.born(process.pid) is not None
    process.kill()
    process.wait()
    assert sweep_workers.born(process.pid) is None


def test_kill_during_recovery_repeats_nothing(sweep, tmp_path, monkeypatch):
    grid = sweep({"x": {"values": [0, 1]}})
    gone = SweepStudy(grid, 0, tmp_path / "out")
    gone.next(2)
    gone.leave()

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(SweepStudy, "finish", killed)
        with pytest.raises(SystemExit):
            SweepStudy(grid, 0, tmp_path / "out").recover()
    study = SweepStudy(grid, 0, tmp_path / "out")
    assert study.recover() == 1
    assert as_text(drawn(study, 2)) == as_text([{"x": 0}, {"x": 1}])


def test_failed_runs_are_repeated_when_asked_for(sweep, tmp_path):
    grid = sweep({"x": {"values": [0, 1]}})
    study = SweepStudy(grid, 0, tmp_path / "out")
    failed, good = study.next(2), study.next(2)
    study.finish(failed.number, TrialState.FAIL)
    study.finish(good.number, TrialState.COMPLETE, 1.0)
    assert study.recover() == 0
    assert study.next(2) is None
    assert study.recover(failed=True) == 1
    assert drawn(study, 2) == [study.values(failed)]


def test_incomplete_last_line_is_cut_off(sweep, tmp_path):
    grid = sweep({"x": {"values": [0, 1, 2]}})
    study = SweepStudy(grid, 0, tmp_path / "out")
    first = study.values(study.next(3))
    study.leave()
    with (tmp_path / "out" / "study.journal").open("a") as file:
        file.write('{"op_code": 5, "work')
    study = SweepStudy(grid, 0, tmp_path / "out")
    assert study.recover() == 1
    results = drawn(study, 3)
    assert results[0] == first
    assert as_text(results) == as_text([{"x": 0}, {"x": 1}, {"x": 2}])
    assert len(SweepStudy(grid, 0, tmp_path / "out").trials()) == 3


@pytest.mark.parametrize(
    ("parameters", "seed", "named"),
    [({"x": {"values": [0, 2]}}, 0, "definition"), ({"x": {"values": [0, 1]}}, 1, "seed")],
)
def test_another_sweep_needs_another_folder(sweep, tmp_path, parameters, seed, named):
    SweepStudy(sweep({"x": {"values": [0, 1]}}, run_cap=1), 0, tmp_path / "out")
    SweepStudy(sweep({"x": {"values": [0, 1]}}, run_cap=2), 0, tmp_path / "out")  # more runs of the same
    with pytest.raises(ValueError, match=f"expected the {named} of the sweep in .* got .*choose another folder"):
        SweepStudy(sweep(parameters), seed, tmp_path / "out")


def kept(study, goal_values):
    """Which of the runs that report these values go on after each of them, one run after the other."""
    results = []
    for values in goal_values:
        trial = study.next(math.inf)
        stopped = next((i for i, value in enumerate(values) if study.report(trial, [value], i)), None)
        results.append(stopped)
        study.finish(
            trial.number,
            TrialState.COMPLETE if stopped is None else TrialState.PRUNED,
            None if stopped is not None else values[-1],
        )
    return results


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_hyperband_compares_runs_at_the_bands(sweep, goal):
    """Bands 1, 2, 4 with eta 2: after k values in all, the best k // 2 go on (the best one where that is none)."""
    halving = {"type": "hyperband", "min_iter": 1, "eta": 2}
    study = SweepStudy(
        sweep({"x": {"min": 0.0, "max": 1.0}}, "random", metric={**METRIC, "goal": goal}, early_terminate=halving), 0
    )
    sign = 1 if goal == "minimize" else -1
    runs = [[5, 5, 5, 5], [6, 6], [4, 6, 0, 0], [4.5, 4.5, 9, 9], [3, 3, 3, 3]]
    # 6 is not the best of (5, 6); 4 is the best of three, but 6 not of (5, 6) after two values; 4.5 is among the best
    # two of (5, 6, 4, 4.5), and best of (5, 6, 4.5), after four values 9 is not the best of (5, 9); 3 is always best.
    assert kept(study, [[sign * value for value in run] for run in runs]) == [None, 0, 1, 3, None]


def test_hyperband_compares_up_to_last_band(sweep):
    halving = {"type": "hyperband", "max_iter": 4, "s": 2, "eta": 2}  # bands 1 and 2
    study = SweepStudy(sweep({"x": {"min": 0.0, "max": 1.0}}, "random", metric=METRIC, early_terminate=halving), 0)
    assert kept(study, [[1, 1, 1, 1], [0, 0, 9, 9], [2]]) == [None, None, 0]


def test_the_study_is_an_ordinary_one_of_optuna(sweep, tmp_path):
    grid = sweep({"x": {"values": [0, 1]}})
    study = SweepStudy(grid, 0, tmp_path / "out")
    study.finish(study.next(2).number, TrialState.COMPLETE, 0.5)
    backend = optuna.storages.journal.JournalFileBackend(str(Path(tmp_path, "out", "study.journal")))
    results = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert results.best_value == 0.5
