"""Formats and texts of W&B and Optuna are those on which sweeps/_compat.py relies."""

import os
import subprocess
import sys

import optuna
import pytest
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from interpretable_training.sweeps import _compat

PROGRAM = """
import wandb
with wandb.init(id="some-1") as run:
    run.log({"loss": 2.5, "nested": {"a": 1}})
    run.log({"loss": 1.5, "text": "long" * 20000})
    run.summary["best"] = 7
"""


@pytest.fixture
def grid():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=GridSampler({"x": [0, 1]}, seed=0))


@pytest.mark.slow
def test_offline_run_of_wandb_is_found_and_read(tmp_path):
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, cwd=tmp_path)
    files = _compat.wandb_files([tmp_path / "none", tmp_path], "some-1")
    assert len(files) == 1, "W&B names the files of its runs in another way: change sweeps/_compat.py"
    advice = "W&B writes another format: change sweeps/_compat.py"
    rows = list(_compat.wandb_rows(files[0]))
    assert [row["loss"] for row, final in rows if not final] == [2.5, 1.5], advice
    assert any(final and row.get("best") == 7 for row, final in rows), advice


def test_point_on_the_grid_is_in_the_system_attributes(grid):
    grid.ask({"x": optuna.distributions.CategoricalDistribution([0, 1])})
    attributes = grid.trials[0].system_attrs
    advice = "Optuna keeps the point of a trial elsewhere: change GRID_ATTRIBUTES in sweeps/_compat.py"
    assert set(_compat.grid_point({**attributes, "other": 1})) == set(_compat.GRID_ATTRIBUTES), advice


def test_end_of_a_grid_outside_of_optimize_is_recognized(grid):
    advice = "Optuna words this error in another way: change is_end_of_grid in sweeps/_compat.py"
    numbers = [grid.ask({"x": optuna.distributions.CategoricalDistribution([0, 1])}).number for _ in range(2)]
    grid.tell(numbers[0], 0.0)
    with pytest.raises(RuntimeError) as caught:
        grid.tell(numbers[1], 1.0)
    assert _compat.is_end_of_grid(caught.value), f"{advice}: {caught.value}"
    assert grid.trials[1].state == TrialState.COMPLETE
    assert not _compat.is_end_of_grid(RuntimeError("a bug"))


def test_lines_of_the_journal_begin_with_the_operation(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    optuna.create_study(storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    lines = (tmp_path / "journal").read_bytes().splitlines()
    advice = "Optuna writes other lines: change LINE_START in sweeps/_compat.py"
    assert len(lines) > 1
    assert all(line.startswith(_compat.LINE_START) for line in lines), advice
