from functools import partial

import lightning as L
import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader

from interpretable_training.models import CIFARResNet18
from interpretable_training.models.build import OURS
from interpretable_training.modules import GuidedGradientClassifier
from interpretable_training.recipes import guided_gradient_cifar100

CONFIGS = {"guided_gradient_cifar100": ("cifar_resnet18", 7.5e-3)}
CONFIGS["guided_gradient_cifar100_mobilenetv2"] = ("cifar_mobilenetv2", 1e-3)


@pytest.mark.parametrize("stem", CONFIGS)
def test_recipe_and_configuration_are_the_same_experiment(stem, assert_same_as_config, monkeypatch):
    for width, name in enumerate(("cifar_resnet18", "cifar_mobilenetv2"), 1):  # millions of weights are slow to compare
        monkeypatch.setitem(OURS, name, partial(CIFARResNet18, width=width))
    network, weight = CONFIGS[stem]
    assert_same_as_config(guided_gradient_cifar100(network, weight=weight), stem)


def test_the_protocol_is_that_of_the_thesis():
    trainer, module, data = guided_gradient_cifar100()
    assert isinstance(module, GuidedGradientClassifier)
    assert (trainer.max_epochs, data.batch_size) == (200, 128)
    group = module.configure_optimizers()[0][0].param_groups[0]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_learning_rate_rises_in_391_steps_and_falls_by_epochs():
    """1 / 391, ..., 391 / 391 of the rate in the first epoch (391 batches of 128), then the rate of the epoch."""
    module = guided_gradient_cifar100().module
    module.parameters = lambda: [torch.nn.Parameter(torch.zeros(1))]  # millions of weights are slow to step
    (optimizer,), schedules = module.configure_optimizers()
    lengths = [391, 391] + [2] * 198  # steps of each epoch; the rate stays within the later ones
    rates = []
    for length in lengths:
        for _ in range(length):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            step(schedules, "step")
        step(schedules, "epoch")
    expected = [0.1 * (i + 1) / 391 for i in range(391)]
    for epoch in range(1, 200):
        expected += [0.1 * 0.2 ** sum(epoch >= m for m in (60, 120, 160))] * lengths[epoch]
    assert rates == pytest.approx(expected, rel=0, abs=1e-12)


def step(schedules, interval):
    """Step the schedulers of an interval as Lightning does."""
    for schedule in schedules:
        if schedule["interval"] == interval:
            schedule["scheduler"].step()


class Rates(L.Callback):
    """The learning rate of each training batch."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_trainer_raises_the_rate_over_the_first_epoch(tmp_path):
    optimizer, scheduler = partial(torch.optim.SGD, lr=0.1), partial(MultiStepLR, milestones=[2], gamma=0.2)
    module = GuidedGradientClassifier("tiny_cnn", 3, optimizer=optimizer, scheduler=scheduler, warmup_steps=4)
    rates = Rates()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=3, callbacks=[rates], **quiet)
    trainer.fit(module, DataLoader([(torch.rand(3, 16, 16), i % 3) for i in range(8)], batch_size=2))
    assert rates.rates == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 5, *[0.02] * 4], rel=0, abs=1e-12)


def test_negative_warm_up_is_refused():
    with pytest.raises(ValueError, match="expected warmup_steps >= 0, got -1"):
        GuidedGradientClassifier("tiny_cnn", 3, warmup_steps=-1)
