"""Methods run on devices without float64 and give the maps of the CPU."""

import copy

import pytest
import torch
from support.without_float64 import DEVICE, Device, OnDevice, inner, to_device
from torch import nn
from torch.testing import assert_close

from interpretable_training import attribution
from interpretable_training.attribution import Attribution, ExpectedGradCAM
from interpretable_training.attribution.core import precision
from interpretable_training.metrics import AverageDrop, InputInvariance, Insertion, UnitIoU


@pytest.fixture(autouse=True)
def no_float64(monkeypatch):
    monkeypatch.setattr(precision, "NO_FLOAT64", {DEVICE.type})


IMAGES = torch.arange(4 * 3 * 16 * 16, dtype=torch.float32).view(4, 3, 16, 16).sin()
TARGET = torch.tensor([0, 2, 1, 1])
OPTIONS = {"n": 3, "steps": 3, "baselines": IMAGES[:2]}
OWN = {
    "RISE": {"n": 8, "cells": 4},
    "GuidedExpectedGradCAM": {"cam": ExpectedGradCAM(baselines=IMAGES[:2], n=3)},
    "HyperExpectedGradCAM": {"cam": ExpectedGradCAM(baselines=IMAGES[:2], n=3), "local_draws": 2},
    "OptiCAM": {"steps": 3},
}
NOT = {"Attribution", "GradientCAM", "CaptumAttribution", "AttentionRollout", "RawAttention", "TransformerAttribution"}
NOT |= {"ExtremalPerturbation", "Occlusion"}  # use operations that torch refuses to the pretended device
METHODS = [
    name
    for name in attribution.__all__
    if isinstance(getattr(attribution, name), type) and issubclass(getattr(attribution, name), Attribution)
]


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU()
        return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()


def method(name):
    made = getattr(attribution, name)
    fields = made.__dataclass_fields__
    return made(**OWN.get(name, {key: value for key, value in OPTIONS.items() if key in fields}))


@pytest.mark.parametrize("target", [TARGET, lambda output: output[:, 1]], ids=["classes", "callable"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOT])
def test_maps_are_those_of_the_cpu(name, target):
    if name == "CAM" and callable(target):
        pytest.skip("needs classes")
    explain, net = method(name), network()
    expected = explain(net, IMAGES, target)
    with Device():
        there = OnDevice(target) if isinstance(target, torch.Tensor) else target
        S = explain(to_device(copy.deepcopy(net)), OnDevice(IMAGES.clone()), there)
    assert isinstance(S, OnDevice)
    assert_close(inner(S), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [AverageDrop, lambda: Insertion(steps=4), lambda: UnitIoU(0.5)])
def test_metrics_move_to_the_device(make):
    with Device():
        metric = make().to("meta")
        assert all(isinstance(getattr(metric, name), OnDevice) for name in metric._defaults)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("make", [AverageDrop, lambda: Insertion(steps=4)])
def test_metrics_measure_on_the_device_as_on_the_cpu(make, moved):
    net, S = network(), IMAGES.abs().mean(1)
    metric = make()
    metric.update(model=net, images=IMAGES, saliency=S, target=TARGET)
    with Device():
        other = make().to("meta") if moved else make()
        tensors = (OnDevice(t.clone()) for t in (IMAGES, S, TARGET))
        images, saliency, target = tensors
        other.update(model=to_device(net), images=images, saliency=saliency, target=target)
        assert_close(float(other.compute()), float(metric.compute()), rtol=1e-4, atol=1e-4)


def test_input_invariance_names_what_to_do():
    test = InputInvariance()
    with Device(), pytest.raises(ValueError, match="pass double=False, or move the model"):
        test(to_device(network()), attribution.GradCAM(), OnDevice(IMAGES.clone()))
