"""When alarms are given, and which methods fail the randomization test."""

from dataclasses import dataclass

import pytest
import torch
from support.watched import Memory, Module, fit, loader, of_callback, record, trainer_of
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution import Attribution, GradCAM, RandomMap
from interpretable_training.callbacks import (
    ExplanationAlarms,
    RandomizationTest,
)
from interpretable_training.callbacks.explanation_alarms import alike, ring, share


@dataclass(frozen=True)
class Given(Attribution):
    """Shows the first channel of the image itself."""

    def attribute(self, prepared, images, target):
        return images[:, 0].clone()


def test_alarms_by_hand():
    even = torch.ones(2, 20, 20)
    assert share(even, ring(even)) == pytest.approx(1 - 0.8**2)
    half = torch.zeros(2, 20, 20)
    half[:, :10] = 1
    corner = torch.zeros(20, 20, dtype=torch.bool)
    corner[:5, :10] = True
    assert share(half, corner) == pytest.approx(0.25)
    assert share(torch.cat([half, 0 * half]), corner) == pytest.approx(0.25)  # of maps with mass
    first = torch.rand(1, 6, 6)
    assert alike(first.expand(4, 6, 6)) == pytest.approx(1)
    assert alike(torch.cat([first, 1 - first])) == pytest.approx(-1)
    assert alike(torch.cat([first, first, 1 - first])) == pytest.approx((1 - 1 - 1) / 3)
    assert alike(first) != alike(first)  # of one map nothing can be said


class Marked(Dataset):
    """All light is in the upper half of the images and three quarters of it in the object, or in its box."""

    def __init__(self, name):
        self.name = name

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image, mask = torch.zeros(3, 16, 16), torch.zeros(16, 16, dtype=torch.bool)
        image[:, :8] = 1
        mask[:8, :12] = True
        place = mask if self.name == "mask" else torch.tensor([[0.0, 0, 12, 8]])
        return {"image": image, "target": index % 3, self.name: place}


class OfDicts(Module):
    def loss(self, batch):
        return F.cross_entropy(self(batch["image"]), batch["target"])


@pytest.mark.parametrize("name", ["mask", "boxes"])
def test_mass_outside_of_the_object(tmp_path, name):
    data = DataLoader(Marked(name), batch_size=4)
    watcher = ExplanationAlarms(Given(), max_images=4, outside=0.2, border=0.99, on_error="raise")
    fit(tmp_path, [watcher], OfDicts(), data, data, max_epochs=1)
    (values,) = of_callback(tmp_path, "ExplanationAlarms")
    assert values["xai/given/alarm/outside"] == pytest.approx(0.25)
    assert [line["name"] for line in record(tmp_path).of("alarm")] == ["xai/given/alarm/outside"]


def test_alarm_is_given_when_a_value_rises_above_the_threshold(tmp_path, caplog):
    """Not while it stays there."""

    @dataclass(frozen=True)
    class Wanders(Attribution):
        def attribute(self, prepared, images, target):
            maps = torch.zeros(len(images), *images.shape[2:])
            inner = trainer.current_epoch in (0, 3)
            maps[:, 8 if inner else 0, 8] = 1
            return maps

    logger = Memory()
    watcher = ExplanationAlarms({"a/b": Wanders()}, max_images=4, border=0.5, on_error="raise")
    trainer = trainer_of(tmp_path, [watcher], max_epochs=6, logger=logger)
    trainer.fit(Module(), loader(16, 0), loader())
    values = [v["xai/a/b/alarm/border"] for v in of_callback(tmp_path, "ExplanationAlarms")]
    assert values == [0, 1, 1, 0, 1, 1]
    assert [line["epoch"] for line in record(tmp_path).of("alarm")] == [1, 4]
    assert len(logger.alerts) == 2
    warned = [printed for printed in caplog.messages if "concentrate on the border" in printed]
    assert len(warned) == 2
    assert "border 1.00, threshold 0.5" in warned[0]


def test_alarms_need_a_threshold_and_an_object(tmp_path):
    with pytest.raises(ValueError, match=r"pass for example alike=0\.9"):
        ExplanationAlarms()
    fit(tmp_path, [ExplanationAlarms(outside=0.5)], max_epochs=1)
    (line, *_) = record(tmp_path).of("failure")
    assert "expected a mask or boxes in the batch for the alarm 'outside', got neither" in line["reason"]


# Randomization


def test_a_control_fails_the_randomization_test(tmp_path):
    logger = Memory()
    module = Module()
    watcher = RandomizationTest({"random": RandomMap(), "gradcam": GradCAM()}, max_images=3, on_error="raise")
    trainer = fit(tmp_path, [watcher], module, max_epochs=1, logger=logger)
    (line,) = record(tmp_path).of("randomization")
    passed = {row["method"]: row["passed"] for row in line["rows"]}
    assert passed["random"] is False
    assert line["rows"][0]["similarity"]["spearman_abs"] == pytest.approx(1)
    assert logger.steps("xai/random/randomization_spearman_abs") == [4]
    again = watcher.run(trainer, module)
    assert [check.passed for check in again] == [row["passed"] for row in line["rows"]]
