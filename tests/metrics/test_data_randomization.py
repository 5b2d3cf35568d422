"""Networks that learned random labels."""

import copy

import pytest
import torch
from torch import nn

from interpretable_training.attribution import FakeCAM, Gradient
from interpretable_training.metrics import DataRandomization, memorize

KINDS = ("spearman", "spearman_abs")


def test_the_same_network_twice_has_the_same_maps(network, images):
    twin = copy.deepcopy(network)
    (check,) = DataRandomization(KINDS, "spearman")(network, twin, Gradient(), images)
    assert check.similarity == pytest.approx(dict.fromkeys(KINDS, 1.0))
    assert check.passed is False


def test_another_network_has_others(network, images, target):
    twin = copy.deepcopy(network)
    for layer in (0, 3, 8):
        nn.init.normal_(twin[layer].weight, generator=torch.Generator().manual_seed(layer))
    found = DataRandomization(KINDS, "spearman")(network, twin, [Gradient(), FakeCAM()], images, target)
    assert [check.passed for check in found] == [True, False]


def test_labels_are_dealt_out_anew():
    target = torch.arange(6).repeat(50)
    shuffled = DataRandomization().shuffled(target)
    assert shuffled.bincount().tolist() == [50] * 6
    assert float((shuffled == target).float().mean()) == pytest.approx(1 / 6, abs=0.1)
    assert torch.equal(shuffled, DataRandomization().shuffled(target))
    assert not torch.equal(shuffled, DataRandomization(seed=1).shuffled(target))


def test_noise_is_known_by_heart_or_it_is_said():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 10, generator=generator), torch.randint(2, (40,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
        assert memorize(net, x, y, batch_size=10, learning_rate=1e-2) >= 0.95
        assert not net.training
        assert (net(x).argmax(1) == y).float().mean() >= 0.95
        with pytest.raises(RuntimeError, match="expected the network to know 100% of the images by heart"):
            memorize(nn.Linear(10, 2), x, y, accuracy=1.0, max_epochs=1)
