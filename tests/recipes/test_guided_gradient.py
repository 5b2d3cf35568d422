from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import Subset

from interpretable_training.cli.configs import find_config
from interpretable_training.cli.lightning_commands import ShortErrorsCLI, run
from interpretable_training.modules import GuidedGradientClassifier
from interpretable_training.recipes import guided_gradient
from interpretable_training.regularization.errors import ERRORS


@pytest.mark.parametrize(("data", "stem"), [("shapes", "guided_gradient"), ("digits", "guided_gradient_digits")])
def test_recipe_and_configuration_are_the_same_experiment(data, stem, assert_same_as_config):
    assert_same_as_config(guided_gradient(data), stem)


def test_arguments_reach_the_regularizer(tmp_path):
    module = guided_gradient(error="mae", weight=2.0, every_n_steps=3, fraction=0.5, output=str(tmp_path)).module
    results = module.regularizer
    assert (results.error, results.weight, results.every_n_steps, results.fraction) == ("mae", 2.0, 3, 0.5)


def test_digits_are_fitted_and_the_checkpoint_rebuilds_itself(tmp_path):
    trainer, module, data = guided_gradient("digits", max_epochs=1, output=str(tmp_path))
    data.setup("fit")
    data.splits = {split: Subset(images, range(64)) for split, images in data.splits.items()}
    trainer.progress_bar_callback.disable()
    trainer.fit(module, data)
    logged = {key for key in trainer.callback_metrics if not key.endswith("accuracy_top5")}
    names = {"loss", "accuracy", "similarity", "gradient_norm", "guided_gradient_norm"}
    assert logged == {f"{split}/{name}" for split in ("train", "val") for name in names} | {
        "train/regularization",
        "train/total_loss",
    }
    again = GuidedGradientClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert again.regularizer == module.regularizer
    torch.testing.assert_close(again.network.state_dict(), module.network.state_dict())


def test_sweep_has_the_rows_of_the_tables_and_parses(monkeypatch):
    sweep = yaml.safe_load((Path(__file__).parents[2] / "configs" / "sweeps" / "guided_gradient.yaml").read_text())
    values = {name: parameter["values"] for name, parameter in sweep["parameters"].items()}
    assert set(values["model.regularizer.error"]) == set(ERRORS)
    assert values["model.regularizer.weight"] == [0, 1e-3, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-1, 1, 10]
    chosen = [f"--{name}={listed[-1]}" for name, listed in values.items()]
    at = sweep["command"].index("fit")
    words = [
        "fit",
        "--config",
        find_config(sweep["command"][at + 2]),
        *sweep["command"][at + 3 : -1],
    ]
    seen = []
    monkeypatch.setattr(ShortErrorsCLI, "before_instantiate_classes", lambda cli: seen.append(cli.config.fit) or stop())
    with pytest.raises(SystemExit):
        run([*words, *chosen])
    assert seen[0].model.init_args.regularizer.as_dict()["weight"] == 10
    assert seen[0].model.init_args.regularizer.as_dict()["error"] == "mse"
    assert seen[0].trainer.logger.class_path.endswith("WandbLogger")


def stop():
    raise SystemExit
