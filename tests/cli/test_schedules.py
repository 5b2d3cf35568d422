"""Schedules of the learning rate end with the training, unless their length is given."""

import math
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from interpretable_training.cli import main
from interpretable_training.modules import Classifier
from interpretable_training.modules.plain_module import lacks_epochs
from interpretable_training.recipes import baseline, guided_gradient, sanity_checks, shortcut
from interpretable_training.recipes.cmapss import cmapss

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [f"--data.{key}={value}" for key, value in {"image_size": 16, "n_train": 4, "n_val": 2, "n_test": 2}.items()]
QUIET = [f"--trainer.{key}=false" for key in ("enable_progress_bar", "enable_model_summary", "logger")]
QUIET += ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]


@pytest.fixture
def last_rate(monkeypatch, tmp_path):
    """Runs fit, and returns the learning rate after it as a share of the first."""
    monkeypatch.chdir(tmp_path)
    trainers, fit = [], L.Trainer.fit

    def remember(trainer, *args, **kwargs):
        trainers.append(trainer)
        fit(trainer, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "fit", remember)

    def run(*words, config=CONFIGS / "baseline.yaml"):
        main(["fit", "--config", str(config), *SMALL, *QUIET, *words])
        group = trainers[-1].optimizers[0].param_groups[0]
        return group["lr"] / group["initial_lr"]

    return run


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["--trainer.max_epochs=3"], 0),
        (["--trainer.max_epochs=1"], 0),
        (["--trainer.max_epochs=1", "--model.scheduler.T_max=2"], 0.5),
        (["--trainer.max_epochs=3", "--model.scheduler.T_max=8"], (1 + math.cos(3 / 8 * math.pi)) / 2),
        (["--trainer.max_epochs=1", "--model.scheduler=StepLR", "--model.scheduler.step_size=1"], 0.1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_cosine_ends_with_training_from_command_line(last_rate, words, share):
    assert last_rate(*words) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(("options", "share"), [({}, 0), ({"eta_min": 5e-4}, 0.5), ({"T_max": 2}, 0.5)], ids=str)
def test_cosine_ends_with_training_from_yaml(last_rate, tmp_path, options, share):
    config = yaml.safe_load((CONFIGS / "baseline.yaml").read_text())
    config["model"]["init_args"]["scheduler"] = {"class_path": "CosineAnnealingLR", "init_args": options}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(config))
    assert last_rate("--trainer.max_epochs=1", config=tmp_path / "some.yaml") == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_give_no_length_of_a_cosine(path):
    assert "T_max" not in path.read_text()


@pytest.mark.parametrize("recipe", [baseline, guided_gradient, sanity_checks, shortcut, cmapss])
def test_cosine_of_recipe_ends_with_its_training(recipe, tmp_path):
    trainer, module, _ = recipe(max_epochs=5, output=str(tmp_path))
    module.trainer = trainer
    assert module.configure_optimizers()[1][0]["scheduler"].T_max == 5


@pytest.mark.parametrize(
    ("scheduler", "lacks"),
    [
        (CosineAnnealingLR, True),
        (partial(CosineAnnealingLR, eta_min=0.1), True),
        (partial(CosineAnnealingLR, T_max=3), False),
        (partial(StepLR, step_size=3), False),
        (lambda optimizer: CosineAnnealingLR(optimizer, 3), False),
    ],
)
def test_length_is_added_where_it_is_missing(scheduler, lacks):
    assert lacks_epochs(scheduler) is lacks
    module = Classifier("tiny_cnn", 3, scheduler=scheduler)
    module.trainer = L.Trainer(max_epochs=7, logger=False, enable_checkpointing=False, accelerator="cpu")
    built = module.configure_optimizers()[1][0]["scheduler"]
    assert getattr(built, "T_max", 3) == (7 if lacks else 3)


def test_training_without_a_number_of_epochs_asks_for_a_length():
    module = Classifier("tiny_cnn", 3, scheduler=CosineAnnealingLR)
    module.trainer = L.Trainer(max_steps=7, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"expected a number of epochs .* got max_epochs=None; pass max_epochs"):
        module.configure_optimizers()


def test_checkpoint_keeps_that_no_length_was_given(last_rate, tmp_path):
    words = ["--trainer.max_epochs=1", "--trainer.enable_checkpointing=true"]
    last_rate(*words)
    module = Classifier.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")))
    assert lacks_epochs(module.scheduler)
    assert isinstance(module.scheduler(torch.optim.SGD(module.parameters(), lr=1.0), T_max=4), CosineAnnealingLR)
