"""Regularizers and CA-Stream give the same on a device as on the CPU; functions of tensors on both would raise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.without_float64 import DEVICE, Device, OnDevice, inner, to_device
from torch.testing import assert_close

from interpretable_training.attribution.core import precision
from interpretable_training.models import CAStream, TinyCNN
from interpretable_training.regularization import GuidedGradientRegularizer

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 2, 1])


@pytest.fixture(autouse=True)
def no_float64(monkeypatch):
    monkeypatch.setattr(precision, "NO_FLOAT64", {DEVICE.type})
    enabled = torch.is_autocast_enabled  # knows real devices only
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device != DEVICE.type and enabled(device))


def network():
    torch.manual_seed(0)
    return TinyCNN(num_classes=3).eval()  # batch norm as in training would need more images


def assert_steps_agree(net, step):
    """The loss of a step and the gradients of the parameters are those of the CPU."""
    expected = step(net, IMAGES, TARGET)
    expected.backward()
    other = copy.deepcopy(net)
    other.zero_grad()
    with Device():
        moved = to_device(other)
        loss = step(moved, OnDevice(IMAGES.clone()), OnDevice(TARGET.clone()))
        loss.backward()
    assert_close(inner(loss.detach()), expected.detach(), rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(moved.parameters(), net.parameters()):
        if theirs.grad is not None:
            assert_close(inner(ours.grad), theirs.grad, rtol=1e-2, atol=1e-4)


def test_device_refuses_tensors_of_the_cpu():
    with Device():
        there = OnDevice(torch.ones(2))
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device=DEVICE, generator=torch.Generator())
        assert_close(inner(there + torch.tensor(1.0)), torch.full((2,), 2.0))


@pytest.mark.parametrize("error", ["cosine", "mae", "mse", "histogram"])
def test_guided_gradient_steps_are_those_of_the_cpu(error):
    regularizer = GuidedGradientRegularizer(error=error, weight=0.1)
    assert_steps_agree(network(), lambda net, x, y: regularizer(net, x, y, F.cross_entropy)[0])


@pytest.mark.parametrize("options", [{}, {"class_specific": True}, {"projected": True}], ids=str)
def test_ca_stream_steps_are_those_of_the_cpu(options):
    torch.manual_seed(1)
    assert_steps_agree(CAStream(network(), **options), lambda net, x, y: F.cross_entropy(net(x), y))
