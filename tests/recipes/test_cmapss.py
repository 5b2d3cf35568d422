import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interpretable_training.cli import main
from interpretable_training.data import CMAPSSDataModule, EnginesDataModule
from interpretable_training.modules import Regressor
from interpretable_training.recipes import cmapss
from interpretable_training.recipes.cmapss import Wear, cmapss_report, life_tables, sensors, telling

CONFIG = Path(__file__).parents[2] / "configs" / "cmapss_fd001.yaml"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def files(folder):
    """Two short lives to train and to validate, and one to test."""
    folder.mkdir()
    rows = "".join(
        f"{e} {t} " + " ".join(str((e * s + t * s) % 7) for s in range(24)) + "  \n"
        for e in (1, 2)
        for t in range(1, 41)
    )
    (folder / "train_FD001.txt").write_text(rows)
    (folder / "test_FD001.txt").write_text(rows)
    (folder / "RUL_FD001.txt").write_text("3 \n99 \n")
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The recipe with few, short engines and one epoch."""
    monkeypatch.chdir(tmp_path)
    recipe = cmapss(n_train=6, max_epochs=1)
    recipe.data.counts |= {"val": 3, "test": 3}
    recipe.trainer.progress_bar_callback.disable()
    recipe.trainer.fit(recipe.module, recipe.data)
    return recipe


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(cmapss(), "cmapss")


def test_the_files_and_their_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(cmapss(folder="CMAPSSData"), "cmapss_fd001")


def test_arguments_reach_the_objects(tmp_path):
    trainer, module, data = cmapss("cnn_bilstm", subset="FD002", folder="x", max_epochs=3, output=str(tmp_path))
    assert type(module.network).__name__ == "CNNBiLSTM"
    assert (type(data), data.by_condition, data.root, module.scale) == (CMAPSSDataModule, True, "x", 125)
    assert trainer.max_epochs == 3
    assert type(cmapss().data) is EnginesDataModule


def test_the_configuration_of_the_files_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data.root", str(files(tmp_path / "data")), "--data.n_val=1", "--trainer.fast_dev_run=1", *QUIET]
    main(["fit", "--config", str(CONFIG), *words])


def test_wear_is_what_is_missing_to_the_largest_estimate():
    module, x = Regressor("cnn_lstm", {"channels": 2}).eval(), torch.randn(3, 2, 9)
    torch.testing.assert_close(Wear(module, 48.0)(x) + module(x), torch.full((3,), 48.0))


def test_the_report_has_errors_tables_sensors_and_a_picture(small):
    text = cmapss_report(small, max_windows=6, n=3)
    folder = Path(small.trainer.log_dir)
    assert re.search(r"RMSE [\d.]+ cycles, MAE [\d.]+ cycles, score", text)
    assert text.count("(control)") >= 4
    assert {name for name in text.split() if name in ("energy", "pointing")} == {"energy", "pointing"}
    assert (folder / "maps.png").exists()
    assert (folder / "remaining_life" / "table.csv").exists()
    assert (folder / "wear" / "passports.json").exists()
    assert sum(sensors(small).values()) == pytest.approx(100, abs=0.01)
    assert re.search(r"sensor 5 .* worn", text)
    assert not re.search(r"sensor 4 .* worn", text)


def test_windows_that_are_measured_hold_both_kinds_of_cycles(small):
    windows = small.data.splits["val"]
    chosen = telling(small.data)
    assert len(chosen) > 10
    for i in range(len(windows)):
        shares = windows[i]["mask"].float().mean()
        assert (0 < shares < 1) == (i in chosen)


def test_files_without_a_known_answer_are_measured_without_it(tmp_path):
    recipe = cmapss(folder=str(files(tmp_path / "data")), output=str(tmp_path))
    recipe.data.n_val = 1
    tables = life_tables(recipe, max_windows=4, n=2)
    assert list(tables["wear"].metrics) == ["average_increase", "average_drop", "average_drop_in_deletion"]
    assert len(tables["wear"]) == 4


@pytest.mark.slow
def test_the_command_learns_and_its_tables_know_the_worn_cycles_and_sensors(tmp_path):
    command = [sys.executable, "-m", "interpretable_training.recipes", "cmapss", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"RMSE ([\d.]+) cycles", done.stdout)[1]) < 8  # the mean target would be wrong by 19
    energy = dict(
        re.findall(r"^(\w+)(?: \(control\))? +(\d+\.\d+)\*? \[.*$", done.stdout.split("energy")[1], re.MULTILINE)
    )
    assert 44 < float(energy["random"]) < 57  # half of the cycles are worn
    assert min(float(energy[name]) for name in ("gradcam", "hirescam", "xgradcam", "layercam")) > 58
    share = {int(n): float(s) for n, s in re.findall(r"sensor (\d) +([\d.]+) %", done.stdout)}
    assert sorted(share, key=share.get)[-2:] in ([2, 5], [5, 2])
