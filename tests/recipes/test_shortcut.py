import pytest
import torch

from interpretable_training.cli.demo import measure
from interpretable_training.recipes import baseline, shortcut


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(shortcut(), "shortcut")


def test_marks_are_all_that_it_adds_to_the_baseline(tmp_path):
    options = {"image_size": 32, "n_train": 24, "output": str(tmp_path)}
    plain, marked = baseline(**options).data, shortcut(**options).data
    plain.setup("fit")
    marked.setup("fit")
    a, b = plain.splits["train"].tensors, marked.splits["train"].tensors
    changed = (a["image"] != b["image"]).any(1).flatten(1).any(1)
    assert torch.equal(a["target"], b["target"])
    assert 20 <= changed.sum() <= 24  # 95 % of 24


@pytest.mark.slow
def test_it_falls_for_the_marks(tmp_path):
    recipe = shortcut(output=str(tmp_path))
    recipe.trainer.fit(recipe.module, recipe.data)
    accuracy = measure(recipe)
    assert accuracy["same"] > 0.9
    assert accuracy["swapped"] < 0.5
    assert accuracy["swapped"] < accuracy["none"] < accuracy["same"] - 0.1
