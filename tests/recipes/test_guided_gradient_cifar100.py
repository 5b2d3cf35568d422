from functools import partial

import pytest

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
    found = module.configure_optimizers()
    group = found["optimizer"].param_groups[0]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)
    rates = []
    for _ in range(200):
        rates.append(group["lr"])
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert [rates[epoch] for epoch in (0, 59, 60, 119, 120, 159, 160)] == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008]
    )
