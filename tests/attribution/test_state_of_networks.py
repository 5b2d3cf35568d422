"""Explaining a network between two training steps changes nothing of the training, wherever the network keeps state."""

import random

import numpy as np
import pytest
import torch
from support import (
    stateful_layers,  # noqa: F401  # adds to NETWORKS
    stateful_networks,
)
from support.stateful_networks import NETWORKS, Net
from torch import nn

from interpretable_training.attribution import Attribution, GradCAM, ScoreCAM, SmoothGrad, explain
from interpretable_training.attribution.core.state import StateWarning, same_state

METHODS: dict[str, Attribution] = {"g": GradCAM(layer="c1"), "s": SmoothGrad(n=2), "c": ScoreCAM(layer="c1")}


def train(network, look):
    """Losses of four steps, and the outputs and state of the network at the end."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(0)
    stateful_networks.CALLS["n"] = stateful_networks.COUNT = stateful_networks.Counts.calls = 0
    stateful_networks.DefaultArgument.middle.__defaults__[0].clear()
    net = NETWORKS[network]()
    images, target = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    optimizer, losses = None, []
    for _ in range(4):
        if look:
            explain(METHODS, net, images[:2], target[:2])
        net.train()
        loss = nn.functional.cross_entropy(net(images), target)
        if optimizer is None:  # once a lazy network has parameters
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, net(images).tolist(), {name: t.tolist() for name, t in net.state_dict().items()}


@pytest.mark.filterwarnings("error::interpretable_training.attribution.core.state.StateWarning", "ignore")
@pytest.mark.parametrize("network", NETWORKS)
def test_explaining_leaves_state_as_it_was(network):
    assert train(network, look=True) == train(network, look=False)


def test_state_makes_a_difference_here():
    """Networks that count or draw give other outputs at their second pass."""
    counting = [cls for name, cls in NETWORKS.items() if name.startswith("Counter") or name.endswith("Generator")]
    assert len(counting) == 5
    for cls in counting:
        torch.manual_seed(0)
        net = cls().train()
        images = torch.rand(2, 3, 8, 8)
        assert not torch.equal(net(images), net(images)), cls.__name__


class HoldsGenerator(Net):
    """A generator function's position cannot be put back."""

    def start(self):
        self.steps = (1 + 0.01 * i for i in range(1000))

    def middle(self, h):
        return h * next(self.steps)


NETWORKS.pop("HoldsGenerator")


def test_what_cannot_be_put_back_is_reported():
    net = HoldsGenerator()
    with pytest.warns(StateWarning, match=r"HoldsGenerator changed steps \(the position of a generator\)"):
        GradCAM(layer="c1")(net, torch.rand(1, 3, 8, 8), 0)


def test_one_failure_does_not_keep_others_from_being_put_back():
    net = Net()
    net.a, net.file = torch.zeros(3), open(__file__)  # noqa: SIM115
    net.array = np.zeros(3)

    def change():
        with same_state(net):
            net.array.resize(5, refcheck=False)
            net.a += 1
            net.file.read(10)

    with pytest.warns(StateWarning, match="array"):
        change()
    assert net.a.tolist() == [0, 0, 0]
    assert net.file.tell() == 0
    net.file.close()


def test_parameters_are_copied_at_the_first_pass_only():
    net = NETWORKS["MomentumEncoder"]()
    images = torch.rand(1, 3, 8, 8)
    GradCAM(layer="c1")(net, images, 0)
    with same_state(net) as state:
        copied = {name for module, name, _, saved, _ in state.parameters if saved.values is not None}
        modules = {id(module) for module, _, _, saved, _ in state.parameters if saved.values is not None}
    assert copied == {"weight", "bias"}
    assert modules == {id(net.slow)}


def test_trainers_optimizers_and_large_data_are_not_walked():
    net = Net()
    net.data = torch.utils.data.TensorDataset(torch.zeros(2, 2**19), torch.zeros(2))
    net.optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with same_state(net) as state:
        tensors = [saved for put, value, saved, _ in state.saved if isinstance(value, torch.Tensor)]
    assert sorted(saved.values is None for saved in tensors) == [False, True]  # 8 bytes are copied, 4 MB are not
