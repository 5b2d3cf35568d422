"""Callbacks that watch trainings of every task."""

import pytest
import torch
from support.task_networks import SIDE, Siamese, TaskModule, WithTable, data_of, encoder, network_of
from support.watched import Memory, fit, record, trainer_of
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import EigenCAM, GradCAM
from interpretable_training.callbacks import ExplanationLogger, InterpretabilityMetrics, RandomizationTest
from interpretable_training.testing import verify_observer

FOLLOWING = ["segmentation", "detection", "embedding", "regression"]


def watch(folder, task, target="pred", metrics=None, **options):
    """Train for one epoch, and return captions and logged numbers."""
    logger = Memory()
    watching = [
        ExplanationLogger([GradCAM(), EigenCAM()], max_images=2, target=target, on_error="raise", **options),
        InterpretabilityMetrics(GradCAM(), metrics, max_images=2, on_error="raise", **options),
    ]
    data = data_of(task)
    trainer = fit(folder, watching, TaskModule(network_of(task)), data, data, max_epochs=1, logger=logger)
    shown = {
        name: [text for _, text in pictures] for _, _, images in logger.pictures for name, pictures in images.items()
    }
    return shown, {name: float(v) for name, v in trainer.callback_metrics.items()}


def probe_of(folder):
    """The start-up report; of a stream the last one, with the images that passed by."""
    return dict(record(folder).of("run")[-1]["probe"])


WORDS = {
    "segmentation": " % of the image",
    "detection": " at ",
    "embedding": "similarity to its mirror image",
    "regression": "output 0",
}


@pytest.mark.parametrize("task", FOLLOWING)
def test_task_is_explained_and_measured(tmp_path, task):
    captions, numbers = watch(tmp_path, task)
    assert all(WORDS[task] in caption for caption in captions["xai/gradcam"])
    expected = {"insertion", "deletion"} if task == "regression" else {"average_drop", "insertion"}
    assert {f"xai/gradcam/{name}" for name in expected} <= {*numbers}
    assert all(value == value for name, value in numbers.items() if name.startswith("xai/gradcam"))
    probe = probe_of(tmp_path)
    assert task.removesuffix("ion") in probe["output"]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_labels_are_explained_too(tmp_path, task):
    captions, _ = watch(tmp_path, task, target="both", class_names=["none", "cat", "dog", "cow"])
    assert all("(label)" in caption for caption in captions["xai/gradcam/label"])
    assert not any("(label)" in caption.split("shown")[1] for caption in captions["xai/gradcam/pred"])
    assert "| true cat |" in captions["xai/gradcam/label"][0] or "| true " in captions["xai/gradcam/label"][0]


def several_inputs(kind):
    images = torch.rand(4, 3, SIDE, SIDE)
    if kind == "table":
        items = [{"image": x, "meta": torch.rand(2), "label": i % 3} for i, x in enumerate(images)]
        return WithTable(), DataLoader(items, batch_size=2)
    return Siamese(), DataLoader(TensorDataset(images, images.flip(0), torch.tensor([0, 1, 0, 1])), batch_size=2)


class OfSeveral(TaskModule):
    def forward(self, *inputs, **named):
        return self.network(*inputs, **named)

    def training_step(self, batch, batch_idx):
        inputs = (batch["image"], batch["meta"]) if isinstance(batch, dict) else batch[:2]
        return self(*inputs).square().mean()


@pytest.mark.parametrize("kind", ["table", "pair"])
def test_other_inputs_stay_those_of_the_image(tmp_path, kind):
    network, data = several_inputs(kind)
    watching = [
        ExplanationLogger(max_images=2, on_error="raise", network="network"),
        InterpretabilityMetrics(max_images=2, on_error="raise", network="network"),
    ]
    trainer = fit(tmp_path, watching, OfSeveral(network), data, data, max_epochs=1)
    assert trainer.callback_metrics["xai/gradcam/insertion"].isfinite()
    probe = probe_of(tmp_path)
    assert probe["inputs"].startswith("images with ")


def test_callbacks_for_classifiers_refuse_other_tasks(tmp_path):
    data = data_of("segmentation")
    test = RandomizationTest(max_images=2, on_error="raise")
    with pytest.raises(ValueError, match="expected a classifier of images for RandomizationTest, got segmentation"):
        fit(tmp_path, [test], TaskModule(network_of("segmentation")), data, data, max_epochs=1)


def test_labels_of_something_else_cost_no_panel(tmp_path):
    images = torch.rand(4, 3, SIDE, SIDE)
    data = DataLoader(TensorDataset(images, torch.tensor([0, 9, 1, 2])), batch_size=2)
    watching = [ExplanationLogger(max_images=2, on_error="raise")]
    logger = Memory()
    fit(tmp_path, watching, TaskModule(network_of("classification")), data, data, max_epochs=1, logger=logger)
    assert "xai/gradcam" in logger.pictures[-1][2]


@pytest.mark.slow
@pytest.mark.parametrize("task", FOLLOWING)
def test_watching_changes_nothing(tmp_path, task):
    watching = [ExplanationLogger(max_images=2, on_error="raise"), InterpretabilityMetrics(max_images=2)]
    data = data_of(task)

    def trainer(callbacks):
        return trainer_of(tmp_path, callbacks, max_epochs=1, limit_train_batches=2)

    report = verify_observer(trainer, lambda: TaskModule(network_of(task)), lambda: (data, data), watching)
    assert not report.differences


@pytest.mark.slow
def test_backbone_without_gradients_says_so(tmp_path):
    class Probe(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = encoder(), torch.nn.Linear(6, 3)

        def forward(self, images):
            with torch.no_grad():
                z = self.body(images)
            return self.head(z.mean((2, 3)))

    data = data_of("classification")
    logger = Memory()
    watching = [ExplanationLogger({"eigencam": EigenCAM()}, max_images=2, on_error="raise")]
    fit(tmp_path, watching, TaskModule(Probe()), data, data, max_epochs=1, logger=logger)
    assert "xai/eigencam" in {name for _, _, images in logger.pictures for name in images}


def test_hardest_images_of_a_regression_by_squared_errors(tmp_path):
    data, module = data_of("regression"), TaskModule(network_of("regression"))
    fit(tmp_path, [ExplanationLogger(max_images=2, hardest=2, on_error="raise")], module, data, data, max_epochs=1)
    images, targets = data.dataset.tensors
    errors = (module.network.eval()(images).detach() - targets).square().mean(1)
    (line,) = [line for line in record(tmp_path).of("maps") if line["group"] == "hardest"]
    assert [int(row["id"]) for row in line["rows"]] == errors.topk(2).indices.tolist()
    assert [row["loss"] for row in line["rows"]] == pytest.approx(errors.topk(2).values.tolist(), rel=1e-4)
    assert {row["label"] for row in line["rows"]} == {None}  # numbers are no classes
