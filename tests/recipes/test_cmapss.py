import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, explain
from interpretable_training.cli import main
from interpretable_training.data import CMAPSSDataModule, EnginesDataModule
from interpretable_training.modules import Regressor
from interpretable_training.recipes import cmapss
from interpretable_training.recipes.cmapss import Wear, cmapss_report, draw_engine, life_tables, sensors, worn_windows

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


def test_files_and_their_yaml_are_the_same_experiment(assert_same_as_config):
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
    chosen = worn_windows(small.data)
    assert len(chosen) > 10
    for i in range(len(windows)):
        shares = windows[i]["mask"].float().mean()
        assert (0 < shares < 1) == (i in chosen)


def test_files_without_worn_cycles_are_measured_without_them(tmp_path):
    recipe = cmapss(folder=str(files(tmp_path / "data")), output=str(tmp_path))
    recipe.data.n_val = 1
    tables = life_tables(recipe, max_windows=4, n=2)
    assert list(tables["wear"].metrics) == ["average_increase", "average_drop", "average_drop_in_deletion"]
    assert len(tables["wear"]) == 4


@pytest.mark.slow
def test_command_learns_and_finds_worn_cycles_and_sensors(tmp_path):
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


# What the recipe of C-MAPSS writes, beside the same by hand: masks, drops and the windows of the picture.

MODULE = importlib.import_module("interpretable_training.recipes.cmapss")


@pytest.fixture
def recipe(tmp_path):
    recipe = cmapss(n_train=6, max_epochs=1, output=str(tmp_path))
    recipe.data.counts |= {"val": 3, "test": 3}
    recipe.data.setup("fit")
    generator = torch.Generator().manual_seed(0)  # a network that says something, as if it had learned
    for name, weight in recipe.module.network.named_parameters():
        if "lstm" in name or "head" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    recipe.module.network.head.bias.data.fill_(0.5)
    return recipe


def drops(score, series, S):
    """Average drop in percent, window by window: the series is faded by its map, which is brought into 0 to 1."""
    results = []
    for x, s in zip(series, S):
        low, high = float(s.min()), float(s.max())
        m = (s - low) / (high - low) if high > low else torch.zeros_like(s)
        before, after = score(x[None]), score((x * m)[None])
        if before > 0:
            results.append(100 * max(0.0, before - after) / before)
    return sum(results) / len(results)


def test_tables_measure_the_estimate_and_the_wear(recipe):
    """Both explain with the network's own direction: of the wear, what lowers the estimate."""
    tables = life_tables(recipe, max_windows=1000, n=2)
    module, windows = recipe.module.eval(), recipe.data.splits["val"]
    series = torch.stack([windows[i]["image"] for i in worn_windows(recipe.data)])
    scores = {"remaining life": lambda x: float(module(x)), "wear": lambda x: 48 - float(module(x))}
    with torch.no_grad():
        for name, target in (("remaining life", None), ("wear", 0)):
            S = GradCAM()(module, series, target)
            cell = tables[name]["gradcam", "average_drop"]
            assert cell.mean == pytest.approx(drops(scores[name], series, S), rel=1e-3)
    assert tables["wear"]["gradcam", "average_drop"].mean != tables["remaining life"]["gradcam", "average_drop"].mean


def test_picture_shows_one_engine_from_early_to_late(recipe, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(MODULE, "draw_series", lambda *arguments: seen.append(arguments))
    draw_engine(recipe, tmp_path / "a.png", n=2)
    series, maps, _, names, titles, worn, worn_name, order = seen[0]
    left = [int(title.split()[0]) for title in titles]
    assert left == sorted(left, reverse=True)
    assert left == [38, 20, 4] or all(abs(a - b) <= 1 for a, b in zip(left, (38, 19, 5)))  # 0.8, 0.4 and 0.1 of 48
    assert [48 - n for n in left] == worn.sum(1).tolist()
    assert worn_name == "worn"
    assert_close(maps["gradcam"], explain({"g": GradCAM()}, recipe.module, series, target=0)["g"])
    estimates = [int(title.split()[-1]) for title in titles]
    assert estimates == [round(float(e)) for e in recipe.module.eval()(series)]
    share = sensors(recipe)
    shown = [share[names[c]] for c in order]
    assert shown == sorted(share.values(), reverse=True)[:6]


def test_subset_without_folder_is_refused():
    with pytest.raises(ValueError, match="the folder with the files of C-MAPSS for FD002, got None; pass folder"):
        cmapss(subset="FD002")
