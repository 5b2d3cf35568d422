"""What a recipe and the configuration of the same name have to agree on."""

import functools
import inspect
import itertools
import sys
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from PIL import Image

from interpretable_training.callbacks import Watcher
from interpretable_training.cli.lightning_commands import run
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.metrics.core.base import described
from interpretable_training.models import build_network
from interpretable_training.modules.plain_module import PlainModule
from interpretable_training.recipes import EvaluationRecipe, Recipe  # which makes our classes known by their names

OPTIONS = ("target", "split", "max_images", "reference", "chunk_size", "seed")
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


def read_study(stem, monkeypatch):
    """The objects and options that a configuration of `evaluate` describes, as a study."""
    seen = []

    @functools.wraps(EvaluationTrainer.evaluate)  # whose arguments are the options of the command
    def remember(trainer, model, datamodule, ckpt_path=None, **options):
        seen.append(EvaluationRecipe(trainer, model, datamodule, options))

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTrainer, "evaluate", remember)
        run(["evaluate", "--config", str(CONFIGS / f"{stem}.yaml")])
    return seen[0]


def measured(study):
    """What a study measures: methods and metrics in order, each with all that decides what it does."""
    given = {name: p.default for name, p in inspect.signature(EvaluationTrainer.evaluate).parameters.items()}
    options = {name: value for name, value in {**given, **study.options}.items() if name in OPTIONS}
    methods = {name: as_lists(described(method)) for name, method in study.options["methods"].items()}
    metrics = {name: metric.passport() for name, metric in study.options["metrics"].items()}
    return {**options, "methods": list(methods.items()), "metrics": list(metrics.items())}


def as_lists(text):
    """Tuples as lists, which is what YAML makes of them."""
    return text.replace(",)", ")").replace("(", "[").replace(")", "]")


def settings(recipe):
    """Everything that decides what a recipe does: data, weights, optimizer, schedule, files."""
    trainer, module, data = recipe[:3]
    with patch.object(PlainModule, "_number_of_epochs", lambda _: trainer.max_epochs):  # not yet attached
        (optimizer,), schedules = module.configure_optimizers()
    plain = (int, float, str, bool, tuple, dict, type(None))
    return {
        "data": {k: v for k, v in vars(data).items() if isinstance(v, plain) and not k.startswith("_")},
        "changes": [repr(getattr(data, f"{split}_transform", None)) for split in ("train", "eval")],
        "weights": {k: v.tolist() for k, v in module.state_dict().items()},
        "loss": repr(module.loss),
        "optimizer": (type(optimizer), optimizer.defaults),
        "schedules": [(type(s["scheduler"]), s["scheduler"].state_dict(), s["interval"]) for s in schedules],
        "epochs": trainer.max_epochs,
        "logger": (type(trainer.logger), trainer.logger.save_dir, trainer.logger.name),
        "checkpoint": (trainer.checkpoint_callback.monitor, trainer.checkpoint_callback.mode),
        "callbacks": [type(c).__name__ for c in trainer.callbacks if not isinstance(c, SaveConfigCallback)],
        "watched": [as_lists(repr(c.settings())) for c in trainer.callbacks if isinstance(c, Watcher)],
    }


@pytest.fixture
def assert_same_as_config(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])  # Lightning warns where both are given

    def check(recipe, stem):
        assert settings(recipe) == settings(read_config(stem))

    return check


@pytest.fixture
def assert_same_study(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])

    def check(study, stem):
        configured = read_study(stem, monkeypatch)
        assert settings(study) == settings(configured)
        assert measured(study) == measured(configured)

    return check


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """The weights of networks where recipes look for them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, network in {"tiny_cnn": "tiny_cnn", "marked_tiny_cnn": "tiny_cnn", "tiny_vit": "tiny_vit"}.items():
        path = tmp_path / "runs" / "ca_stream" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(build_network(network, 6).state_dict(), path)
    return tmp_path / "runs" / "ca_stream" / "tiny_cnn.pt"


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Folders of photographs in the layout of ImageNet, and timm's networks without a download."""
    monkeypatch.chdir(tmp_path)
    for split, wnid in itertools.product(("train", "val"), ("n01440764", "n02123045")):
        file = tmp_path / "imagenet" / split / wnid / f"{wnid}_{split}.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (80, 64), "gray").save(file)
        boxes = tmp_path / "imagenet" / "Annotations" / "CLS-LOC" / split / f"{file.stem}.xml"
        boxes.parent.mkdir(parents=True, exist_ok=True)
        corners = "<xmin>8</xmin><ymin>4</ymin><xmax>39</xmax><ymax>31</ymax>"
        boxes.write_text(f"<annotation><object><name>x</name><bndbox>{corners}</bndbox></object></annotation>")
    create, asked = timm.create_model, []

    def small(name, pretrained, num_classes):
        asked.append((name, pretrained))
        torch.manual_seed(0)
        return create("test_vit" if "vit" in name else "test_resnet", num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", small)
    return asked
