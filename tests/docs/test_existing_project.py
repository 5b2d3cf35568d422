"""The examples for projects of other people do what the page says; that its Python runs is tested with all pages."""

import importlib
import re
import shlex

import lightning as L
import pytest
import torch
import yaml
from support import pages
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, HiResCAM, normalize
from interpretable_training.callbacks import ExplanationLogger, InterpretabilityMetrics
from interpretable_training.data import ShapesDataModule
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier
from interpretable_training.testing import verify_observer

PAGE = pages.ROOT / "docs" / "existing-project.md"


def marked(name):
    """The block behind `<!-- test: NAME -->`."""
    return re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def section(*titles):
    """The Python of some sections, run."""
    text = PAGE.read_text()
    names = {**pages.prelude(), "nn": torch.nn, "torch": torch, "L": L}
    for title in titles:
        for code in re.findall(r"```python\n(.*?)```", text.split(f"## {title}\n")[1].split("\n## ")[0], re.DOTALL):
            exec(code, names)
    return names


def instantiate(node):
    """What Hydra does with `_target_`, as far as the page needs it."""
    if not isinstance(node, dict):
        return node
    made = {key: instantiate(value) for key, value in node.items() if key not in ("_target_", "_convert_")}
    room, _, name = node.get("_target_", "").rpartition(".")
    return getattr(importlib.import_module(room), name)(**made) if room else made


def test_hydra_makes_the_callbacks():
    made = instantiate(yaml.safe_load(marked("hydra")))
    assert isinstance(made["explanations"], ExplanationLogger)
    assert isinstance(made["numbers"], InterpretabilityMetrics)
    assert made["explanations"].methods["layercam"].layer == "auto"


@pytest.mark.slow
def test_the_command_line_adds_callbacks(foreign):
    words = [word for word in shlex.split(marked("cli").replace("\\\n", " ")) if word != "config.yaml"]
    foreign.run(*[word for word in words[2:] if word != "--config"])
    assert "xai/gradcam/insertion" in foreign.logged()
    assert len(list(foreign.folder.rglob("maps/*gradcam*.png"))) > 0


@pytest.mark.slow
def test_an_overlay_file_adds_callbacks(foreign):
    (foreign.folder / "watch.yaml").write_text(marked("overlay"))
    foreign.run("fit", "--config", "watch.yaml")
    assert "xai/gradcam/insertion" in foreign.logged()
    assert len(list(foreign.folder.rglob("maps/*layercam*.png"))) > 0


@pytest.mark.filterwarnings("ignore")
def test_both_networks_are_shown(small_training):
    section("A plain Trainer", "Batches, outputs and networks of other kinds")
    shown = {path.name for path in small_training.rglob("panel-*.png")}
    assert any("student" in name for name in shown)
    assert any("teacher" in name for name in shown)


@pytest.mark.filterwarnings("ignore")
def test_the_logger_gets_pictures(small_training):
    section("A plain Trainer", "A logger of your own")
    assert len(list(small_training.rglob("pictures/xai/gradcam/*.png"))) == 4


@pytest.fixture
def theirs():
    pytest.importorskip("torchcam")
    pytest.importorskip("pytorch_grad_cam")
    return section("Coming from pytorch-grad-cam, torchcam or captum")


@pytest.mark.filterwarnings("ignore")
def test_methods_of_other_libraries_show_what_ours_show(theirs, small_training):
    model, images, target = theirs["model"], theirs["images"], theirs["target"]
    maps = theirs["TorchCAM"]("GradCAM")(model, images, target)
    assert_close(normalize(maps), normalize(GradCAM("layer4")(model, images, target)), atol=1e-4, rtol=1e-4)
    maps = theirs["PytorchGradCAM"]("HiResCAM")(model, images, target)
    assert_close(normalize(maps), normalize(HiResCAM("layer4")(model, images, target)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "method"), [("TorchCAM", "SmoothGradCAMpp"), ("PytorchGradCAM", "HiResCAM")])
def test_methods_of_other_libraries_change_nothing(theirs, library, method, small_training):
    report = verify_observer(
        lambda given: L.Trainer(
            max_epochs=1, val_check_interval=1, accumulate_grad_batches=2, logger=False, callbacks=given
        ),
        lambda: Classifier(TinyCNN(6), 6),
        lambda: ShapesDataModule(32, batch_size=4),
        ExplanationLogger({"theirs": theirs[library](method, "stage2")}, max_images=4, on_error="raise"),
    )
    report.raise_if_different()
