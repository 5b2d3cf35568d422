"""`InterpretabilityMetrics` on batches that tell where the objects are: the numbers of `evaluate`."""

import lightning as L
import pytest
import torch

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import InterpretabilityMetrics
from interpretable_training.data import ShapesDataModule
from interpretable_training.metrics import (
    BackgroundAccuracy,
    BoxAccuracy,
    EnergyPointingGame,
    LocalizationError,
    ObjectAccuracy,
    OfficialMetric,
    PixelF1,
    PlainAccuracy,
    PointingGame,
    SaliencyMetric,
    TopReplacedAccuracy,
    evaluate,
)
from interpretable_training.modules import Classifier

METRICS = {
    "pointing": PointingGame(),
    "energy": EnergyPointingGame(),
    "cue": EnergyPointingGame(region="shortcut_mask"),
    "error": LocalizationError(iou=True),
    "official": OfficialMetric(iou=True),
    "accuracy": BoxAccuracy(steps=5),
    "saliency": SaliencyMetric(),
    "f1": PixelF1(per_box=True),
    "plain": PlainAccuracy(),
    "object": ObjectAccuracy(),
    "background": BackgroundAccuracy(),
    "cue_alone": ObjectAccuracy("shortcut_mask"),
    "top": TopReplacedAccuracy(),
}


@pytest.fixture
def data():
    """Half of the images hold a cue."""
    return ShapesDataModule(
        image_size=32, n_train=8, n_val=8, n_test=24, batch_size=7, annotations=True, shortcut=0.5, seed=1
    )


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier("tiny_cnn", 6)


def numbers_of(module, data, tmp_path, **options):
    callback = InterpretabilityMetrics(GradCAM(), METRICS, max_images=24, **options)
    trainer = L.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.test(module, data, verbose=False)
    return {name.removeprefix("test/xai/gradcam/"): float(v) for name, v in trainer.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore")
def test_the_numbers_are_those_of_evaluate(module, data, tmp_path):
    results = numbers_of(module, data, tmp_path, on_error="raise")
    table = evaluate(module, GradCAM(), METRICS, data, split="test", controls=False, resamples=5, progress=False)
    for name in METRICS:
        assert results[name] == pytest.approx(table["gradcam", name].mean, rel=1e-4, abs=1e-4), name
    without = table["gradcam", "cue"].n_invalid
    assert 0 < without < 24
    assert results["cue/invalid"] == without


def ragged(items):
    """As a project's own collate function does it: boxes as a list, one tensor for each image."""
    batch = torch.utils.data.default_collate([{k: v for k, v in item.items() if k != "boxes"} for item in items])
    return {**batch, "boxes": [item["boxes"] for item in items]}


@pytest.mark.filterwarnings("ignore")
def test_boxes_may_come_in_lists(module, data, tmp_path):
    data.setup("test")
    loader = torch.utils.data.DataLoader(data.splits["test"], batch_size=5, collate_fn=ragged)
    assert numbers_of(module, loader, tmp_path, on_error="raise")["error"] == pytest.approx(
        numbers_of(module, data, tmp_path)["error"], rel=1e-4
    )


@pytest.mark.filterwarnings("ignore")
def test_without_annotations_the_metric_is_named(module, tmp_path):
    data = ShapesDataModule(image_size=32, n_train=8, n_val=8, n_test=8, batch_size=8)
    with pytest.raises(Exception, match="in the batch for PointingGame, got none; make batches dicts that carry them"):
        numbers_of(module, data, tmp_path, on_error="raise")
