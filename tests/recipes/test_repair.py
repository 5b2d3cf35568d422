"""The recipe that mends a network which uses a cue, and the table that compares remedies."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from interpretable_training.batches.read import pick
from interpretable_training.callbacks import BackgroundSwap, ExplanationGuidance
from interpretable_training.evaluation.erased_squares import ErasedSquares
from interpretable_training.recipes import repair, repair_table
from interpretable_training.recipes.remedies import (
    RandomSwap,
    callbacks_of,
    erase_found_cues,
    make_data,
    measure_repair,
    retrain_head,
)
from interpretable_training.recipes.repair import mean_and_interval, repair_report

SMALL = {"n_train": 36, "max_epochs": 1, "batch_size": 12}


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(repair(), "repair")


def test_remedies_are_callbacks_on_the_layer():
    (swap,), (energy,) = callbacks_of("background_swap", "stage2"), callbacks_of("energy", "stage1")
    assert type(swap) is BackgroundSwap
    assert isinstance(energy, ExplanationGuidance)
    assert energy.guidance.method.layer == "stage1"
    assert callbacks_of("nothing", "stage2") == []


def test_all_annotated_images_are_swapped_where_few_are():
    (all_known,) = callbacks_of("background_swap", "stage2", "decoy_digits")
    (few_known,) = callbacks_of("background_swap", "stage2", "decoy_digits", annotated=0.1)
    assert (all_known.swap.share, few_known.swap.share) == (0.7, 1.0)
    assert all_known.swap.widen == few_known.swap.widen == 1


def test_random_regions_have_the_size_of_objects_elsewhere():
    data = make_data("marks", 0.95, 12, batch_size=12)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    control, swap = RandomSwap(), BackgroundSwap()
    picked = pick(batch)
    moved, objects = control.objects_of(picked, batch), swap.objects_of(picked, batch)
    assert torch.equal(moved.sum((1, 2)), objects.sum((1, 2)))
    assert not (moved & objects).any()


@pytest.mark.parametrize("data", ["marks", "textures", "decoy_digits"])
def test_report_has_behavior_and_maps(data, tmp_path):
    recipe = repair(data, output=str(tmp_path), **SMALL)
    report = repair_report(recipe, n_test=60)
    for name in ("same", "none", "swapped", "worst group", "energy on object", "peak on cue"):
        assert name in report


@pytest.mark.slow
def test_found_cues_are_erased_from_training_images(tmp_path, monkeypatch):
    recipe = repair(output=str(tmp_path), **SMALL)
    stub = SimpleNamespace(erase=lambda images: ErasedSquares(images, {0: (20, 30, 28, 38)}))
    monkeypatch.setattr("interpretable_training.recipes.remedies.find_shortcuts", lambda *_, **__: stub)
    erase_found_cues(recipe, recipe.module.network, "stage2")
    assert isinstance(recipe.data.splits["train"], ErasedSquares)
    recipe.trainer.fit(recipe.module, recipe.data)
    assert isinstance(recipe.data.splits["train"], ErasedSquares)  # the training made no other


@pytest.mark.parametrize("found", [False, True])
def test_last_layer_is_all_that_retraining_changes(tmp_path, monkeypatch, found):
    recipe = repair(output=str(tmp_path), **SMALL)
    groups = lambda: torch.arange(96) % 12  # noqa: E731
    stub = SimpleNamespace(indices=torch.arange(96), groups=groups)
    monkeypatch.setattr("interpretable_training.recipes.remedies.find_shortcuts", lambda *_, **__: stub)
    small = partial(make_data, n_train=12, n_val=96)
    monkeypatch.setattr("interpretable_training.recipes.remedies.make_data", small)
    before = {name: value.clone() for name, value in recipe.module.network.state_dict().items()}
    retrain_head(recipe.module, "marks", "stage2", found)
    changed = {k for k, v in recipe.module.network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}


def test_interval_is_that_of_students_t():
    assert mean_and_interval([50.0]) == "50"
    assert mean_and_interval([1.0, 3.0]) == "2 ± 13"  # 12.706 * sqrt(2) / sqrt(2)


def test_table_resumes_and_shows_all_rows(tmp_path, monkeypatch):
    table = repair_table("marks", seeds=2, output=str(tmp_path))
    trained = []

    def train(name, share, seed):
        trained.append((name, share, seed))
        seconds = 2.0 if "swap" in name else 1.0
        return {"same": 90.0 + seed, "swapped": 40.0, "energy on object": 20.0, "seconds": seconds}

    monkeypatch.setattr(type(table), "train", lambda self, *row: train(*row))
    text = table.run()
    assert len(trained) == len(set(trained)) == 2 * len(table.rows())
    assert table.run() == text
    assert len(trained) == 2 * len(table.rows())
    assert json.loads((tmp_path / "marks-energy-0.1-1.json").read_text())["same"] == 91.0
    lines = (tmp_path / "marks.md").read_text().splitlines()
    assert len(lines) == 2 + len(table.rows())
    (swap,) = [line for line in lines if line.startswith("| background_swap, 100% masks")]
    assert swap == "| background_swap, 100% masks | 90.5 ± 6.4 | 40 ± 0 | 20 ± 0 | 2 ± 0 |"
    assert (tmp_path / "marks.png").stat().st_size > 1000


@pytest.mark.slow
def test_swap_of_backgrounds_mends_the_network(tmp_path):
    options = {"n_train": 3000, "max_epochs": 8, "output": str(tmp_path)}
    accuracy = {}
    for remedy in ("nothing", "background_swap"):
        recipe = repair(remedy=remedy, **options)
        recipe.trainer.fit(recipe.module, recipe.data)
        accuracy[remedy] = measure_repair(recipe)["swapped"]
    assert accuracy["nothing"] < 50
    assert accuracy["background_swap"] > 80
