import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from PIL import Image

from interpretable_training.callbacks import GuidedGradientRegularization
from interpretable_training.cli import main
from interpretable_training.data import ImageNetDataModule, ShapesDataModule
from interpretable_training.models import TinyCNN, build_network
from interpretable_training.modules import CAStreamClassifier, Classifier
from interpretable_training.recipes import ca_stream, ca_stream_imagenet
from interpretable_training.recipes.ca_stream import ca_stream_report, compare_poolings, differences, trained_backbone
from interpretable_training.regularization import GuidedGradientRegularizer

CONFIGS = Path(__file__).parents[2] / "configs"


def test_recipe_and_yaml_of_shapes_are_the_same(backbone, assert_same_as_config):
    assert_same_as_config(ca_stream(), "ca_stream_shapes")


def test_recipe_and_yaml_of_imagenet_are_the_same(tmp_path, monkeypatch, assert_same_as_config):
    monkeypatch.chdir(tmp_path)
    create = timm.create_model

    def trained(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ("resnet50", True, 1000)
        return create("test_resnet", num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", trained)
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (300, 260)).save(tmp_path / "imagenet" / split / "cat" / "0.png")
    recipe = ca_stream_imagenet()
    assert_same_as_config(recipe, "ca_stream")
    assert isinstance(recipe.data, ImageNetDataModule)
    recipe.data.setup("fit")
    for loader in (recipe.data.train_dataloader(), recipe.data.val_dataloader()):
        assert loader.dataset[0][0].shape == (3, 224, 224)


def test_recipe_and_yaml_of_both_objectives_are_the_same(backbone, assert_same_as_config):
    torch.manual_seed(1)
    torch.save(build_network("tiny_cnn", 6).state_dict(), backbone.with_name("guided_tiny_cnn.pt"))
    assert_same_as_config(ca_stream(guided_weight=0.0075), "ca_stream_guided_gradient")


@pytest.mark.slow
def test_both_objectives_are_pursued(tmp_path, monkeypatch):
    """The backbone is trained with the regularizer, then stays as it is while the stream learns beside it."""
    monkeypatch.chdir(tmp_path)
    sizes = {"image_size": 16, "n_train": 48}
    words = [f"--data.{key}={value}" for key, value in {**sizes, "n_val": 12}.items()]
    words += [f"--model.network.{key}={value}" for key, value in {**sizes, "max_epochs": 1}.items()]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    main(["fit", "--config", str(CONFIGS / "ca_stream_guided_gradient.yaml"), *words])
    folder = tmp_path / "runs" / "ca_stream"
    first = (folder / "backbone" / "baseline" / "version_0" / "metrics.csv").read_text()
    assert "train/similarity" in first.splitlines()[0]
    second = (folder / "version_0" / "metrics.csv").read_text()
    assert "val/gap_accuracy" in second.splitlines()[0]
    guided = torch.load(folder / "guided_tiny_cnn.pt", weights_only=True)
    plain = trained_backbone(str(tmp_path / "plain.pt"), **sizes, max_epochs=1).state_dict()
    assert not guided["head.weight"].equal(plain["head.weight"])
    module = CAStreamClassifier(build_network("tiny_cnn", 6), 6, weights=str(folder / "guided_tiny_cnn.pt"))
    before = module.network.stream.state_dict()["blocks.0.out.weight"].clone()
    (checkpoint,) = (folder / "version_0" / "checkpoints").iterdir()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])  # refuses another backbone
    assert not module.network.stream.state_dict()["blocks.0.out.weight"].equal(before)


@pytest.mark.parametrize("frozen", [True, False])
def test_callback_adds_the_second_objective_to_the_stream(frozen):
    """Guided gradients of the stream beside a frozen backbone, or of all, at once."""
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    results = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        stream = {"train_backbone": not frozen, "train_head": not frozen}
        module = CAStreamClassifier(TinyCNN(6), 6, stream=stream)
        regularization = GuidedGradientRegularization(GuidedGradientRegularizer(weight=weight))
        trainer = L.Trainer(accelerator="cpu", callbacks=[regularization], **options)
        trainer.fit(module, ShapesDataModule(32, n_train=16, n_val=8, n_test=8, batch_size=8))
        results.append({name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad})
        assert ("train/regularization" in trainer.callback_metrics) == (weight > 0)
    moved = {name for name in results[0] if not results[0][name].equal(results[1][name])}
    assert any(".stream." in name for name in moved)
    assert any(".backbone." in name for name in moved) == (not frozen)


def test_the_backbone_is_trained_once(tmp_path):
    """The second call reads what the first wrote, and neither touches the random state of what follows."""
    options = {"weights": str(tmp_path / "b.pt"), "image_size": 16, "n_train": 12, "max_epochs": 1}
    torch.manual_seed(7)
    first = trained_backbone(**options)
    after = torch.rand(1)
    written = (tmp_path / "b.pt").stat().st_mtime_ns
    torch.manual_seed(7)
    second = trained_backbone(**options)
    assert torch.equal(torch.rand(1), after)
    assert (tmp_path / "b.pt").stat().st_mtime_ns == written
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert isinstance(first, TinyCNN)


def test_arguments_reach_the_stream(backbone):
    module = ca_stream(image_size=32, n_train=12, start=1, heads=2, projected=True, class_specific=True).module
    assert isinstance(module, CAStreamClassifier)
    assert module.network.stages == ("stage2", "stage3")
    assert module.network.stream.query.shape == (6, 64)
    assert (module.network.stream.blocks[0].heads, module.network.stream.blocks[0].key is None) == (2, False)


@pytest.mark.slow
def test_it_ends_with_a_table_and_a_picture(backbone, tmp_path):
    recipe = ca_stream(image_size=32, n_train=24, batch_size=8, max_epochs=1, output=str(tmp_path / "runs"))
    recipe.trainer.fit(recipe.module, recipe.data)
    text = ca_stream_report(recipe, max_images=4)
    folder = tmp_path / "runs" / "ca_stream" / "version_0"
    assert (folder / "attention.png").exists()
    assert (folder / "faithfulness" / "table.md").exists()
    for words in ("accuracy   GAP", "GAP/gradcam", "CA/scorecam", "average_drop", "deletion", "CA - GAP"):
        assert words in text
    assert "val/gap_accuracy" in (folder / "metrics.csv").read_text()


def test_differences_are_those_of_each_method(backbone, tmp_path):
    """Rows of the joined table are per image: CA - GAP of a method is the mean of its own differences."""
    recipe = ca_stream(image_size=32, n_train=12, output=str(tmp_path / "runs"))
    table = compare_poolings(recipe, max_images=5)
    expected = [
        (table.per_image(f"CA/{m}", "insertion") - table.per_image(f"GAP/{m}", "insertion")).mean().item()
        for m in ("gradcam", "gradcamplusplus", "scorecam")
    ]
    lines = differences(table).splitlines()
    column = lines[0].split()[3:].index("insertion")
    results = [float(line.replace(", ", ",").split()[1 + 2 * column]) for line in lines[1:]]
    assert results == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_the_stream_keeps_the_accuracy(tmp_path):
    command = [sys.executable, "-m", "interpretable_training.recipes", "ca_stream", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = re.search(r"accuracy   GAP ([\d.]+)%   CA ([\d.]+)%", done.stdout)
    assert results, done.stdout
    assert float(results[2]) >= float(results[1]) - 2
    assert (tmp_path / "ca_stream" / "version_0" / "attention.png").exists()


def test_a_fine_tuned_backbone_follows_the_same_path(tmp_path, backbone):
    """A multilabel Classifier's checkpoint, then the stream beside it."""
    module = Classifier("tiny_cnn", 6, multilabel=True)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "voc.ckpt")
    stream = CAStreamClassifier("tiny_cnn", 6, weights=str(tmp_path / "voc.ckpt"), multilabel=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(stream.network.backbone(images), module.eval()(images))
