"""What a recipe and the configuration of the same name have to agree on."""

import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.cli import LightningCLI

from interpretable_training.callbacks import Watcher
from interpretable_training.recipes import Recipe  # which makes our classes known by their names

CONFIGS = Path(__file__).parents[2] / "configs"


def read_config(stem):
    """The objects that a configuration describes, as a recipe."""
    cli = LightningCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        run=False,
        args={"config": str(CONFIGS / f"{stem}.yaml")},
    )
    return Recipe(cli.trainer, cli.model, cli.datamodule)


def settings(recipe):
    """Everything that decides what a recipe does: data, weights, optimizer, schedule, files."""
    trainer, module, data = recipe
    found = module.configure_optimizers()
    found = found if isinstance(found, dict) else {"optimizer": found}
    scheduler = found.get("lr_scheduler", {}).get("scheduler")
    plain = (int, float, str, bool, tuple, dict, type(None))
    return {
        "data": {k: v for k, v in vars(data).items() if isinstance(v, plain) and not k.startswith("_")},
        "weights": {k: v.tolist() for k, v in module.state_dict().items()},
        "loss": repr(module.loss),
        "optimizer": (type(found["optimizer"]), found["optimizer"].defaults),
        "scheduler": scheduler and (type(scheduler), scheduler.state_dict()),
        "epochs": trainer.max_epochs,
        "logger": (type(trainer.logger), trainer.logger.save_dir, trainer.logger.name),
        "checkpoint": (trainer.checkpoint_callback.monitor, trainer.checkpoint_callback.mode),
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "watched": [repr(callback.settings()) for callback in trainer.callbacks if isinstance(callback, Watcher)],
    }


@pytest.fixture
def assert_same_as_config(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])  # Lightning warns where both are given

    def check(recipe, stem):
        assert settings(recipe) == settings(read_config(stem))

    return check
