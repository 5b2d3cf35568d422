import pytest
import torch
from torch import nn

from interpretable_training.models import build_network


@pytest.mark.parametrize(("name", "count"), [("cifar_resnet18", 11_220_132), ("cifar_mobilenetv2", 2_369_380)])
def test_cifar_networks_have_published_parameter_counts(name, count):
    assert sum(p.numel() for p in build_network(name, 100).parameters()) == count


@pytest.mark.parametrize(("name", "last", "side"), [("cifar_resnet18", "layer4", 4), ("cifar_mobilenetv2", "conv", 5)])
def test_cifar_networks_average_the_last_map(name, last, side):
    net, maps = build_network(name, 7, channels=1).eval(), []
    net.get_submodule(last).register_forward_hook(lambda module, inputs, output: maps.append(output))
    logits = net(torch.randn(2, 1, 32, 32))
    assert maps[0].shape[2:] == (side, side)
    torch.testing.assert_close(logits, net.fc(maps[0].mean((2, 3))))


def test_cifar_resnet_registers_half_of_its_activations():
    """One in the stem and one per block; the 8 behind the additions are functions."""
    net = build_network("cifar_resnet18", 10, width=4)
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) == 9


def test_cifar_mobilenet_counts_convolutions_and_shortcuts():
    """Stem, 17 blocks of three, last; 10 blocks neither stride nor change their width."""
    net = build_network("cifar_mobilenetv2", 10)
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 1 + 3 * 17 + 1
    assert sum(getattr(module, "residual", False) for module in net.modules()) == 10
