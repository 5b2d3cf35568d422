"""Methods and metrics run on devices without float64 and give what they give on the CPU in float32."""

import copy

import pytest
import torch
from support.attributions import METHODS, toy, toy_images
from support.every_metric import ALL_METRICS, MAKE, batch
from support.metric_fixtures import network  # noqa: F401 (a fixture)
from support.without_float64 import DEVICE, Device, OnDevice, inner, to_device
from torch.testing import assert_close

from interpretable_training import attribution
from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core import precision
from interpretable_training.metrics import DataRandomization, InputInvariance, ParameterRandomization, UnitIoU

pytestmark = pytest.mark.filterwarnings("error::interpretable_training.attribution.core.state.StateWarning")
TARGET = torch.tensor([0, 2, 1])


@pytest.fixture(autouse=True)
def no_float64(monkeypatch):
    monkeypatch.setattr(precision, "NO_FLOAT64", {DEVICE.type})


def on_device(value):
    return OnDevice(value.clone()) if isinstance(value, torch.Tensor) else value


def test_every_method_is_listed():
    public = (getattr(attribution, name) for name in attribution.__all__)
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Attribution)}
    assert kinds - {Attribution, attribution.GradientCAM} == {type(method) for method in METHODS.values()}


def values(net):
    return {name: inner(tensor).clone() for name, tensor in net.state_dict().items()}


def explained(name, target):
    """The map of a method on the CPU and on the device, whose network stays as it was."""
    method, net, images = METHODS[name], toy(name), toy_images()
    expected = method(net, images, target)
    with Device():
        moved = to_device(copy.deepcopy(net))
        before = values(moved)
        S = method(moved, on_device(images), on_device(target))
    assert isinstance(S, OnDevice)
    assert_close(values(moved), before, rtol=0, atol=0)
    return expected, inner(S)


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_those_of_the_cpu(name):
    expected, S = explained(name, TARGET)
    assert_close(S, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("cam", "captumattribution")])
def test_maps_of_a_score_are_those_of_the_cpu(name):
    expected, S = explained(name, lambda output: output[:, 1])
    assert_close(S, expected, rtol=1e-3, atol=1e-4)


def measured(metric, net, use, moved=False):
    """The states and the result after a use with images of float32, on the CPU or the device."""
    images = torch.randn(5, 3, 12, 8, generator=torch.Generator().manual_seed(1))
    saliency = torch.rand(5, 12, 8, generator=torch.Generator().manual_seed(2))
    given = batch(metric, net, images, saliency, torch.tensor([0, 3, 1, 1, 2]))
    given = {key: on_device(value) if moved else value for key, value in given.items()}
    use(metric, given)
    return {name: inner(getattr(metric, name)) for name in metric._defaults}, float(metric.compute())


def update(metric, given):
    metric.update(**given)


def reset_and_merge(metric, given):
    metric(**given)
    metric.reset()
    metric.update(**given)
    metric(**given)
    metric.merge_state(copy.deepcopy(metric))


def assert_measures_as_on_the_cpu(make, net, use, move):
    net = net.float()
    expected, value = measured(make(), net, use)
    with Device():
        metric = make().to(DEVICE) if move else make()
        assert not move or all(isinstance(getattr(metric, name), OnDevice) for name in metric._defaults)
        states, result = measured(metric, to_device(copy.deepcopy(net)), use, moved=True)
    assert result == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True)
    for name, tensor in expected.items():
        assert_close(states[name].to(tensor), tensor, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", MAKE)
def test_metrics_measure_as_on_the_cpu(name, network):  # noqa: F811
    assert_measures_as_on_the_cpu(MAKE[name], network, update, move=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_metrics_left_on_the_cpu_measure_the_same(name, network):  # noqa: F811
    assert_measures_as_on_the_cpu(MAKE[name], network, update, move=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_states_are_reset_and_merged_as_on_the_cpu(name, network):  # noqa: F811
    assert_measures_as_on_the_cpu(MAKE[name], network, reset_and_merge, move=True)


def test_every_metric_is_listed():
    assert set(ALL_METRICS.values()) == {type(make()) for make in MAKE.values()}


@pytest.mark.parametrize("move", [False, True], ids=["stays", "moved"])
def test_units_are_dissected_as_on_the_cpu(move):
    A, mask = toy_images(4, 5), toy_images(4, 2) > 0.5
    metric = UnitIoU(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), num_concepts=2)
    metric.update(A, mask=mask)
    with Device():
        other = UnitIoU(metric.threshold, num_concepts=2)
        other = other.to(DEVICE) if move else other
        assert not move or all(isinstance(getattr(other, name), OnDevice) for name in other._defaults)
        other.update(on_device(A), mask=on_device(mask))
        assert_close(inner(other.iou()), metric.iou(), rtol=1e-5, atol=1e-6)
        assert float(other.compute()) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_input_invariance_names_what_to_do():
    with Device(), pytest.raises(ValueError, match="pass double=False, or move the model"):
        InputInvariance()(to_device(toy()), attribution.GradCAM(), on_device(toy_images()))


SANITY = {
    "input_invariance": InputInvariance(double=False),
    "input_invariance_in_the_bias": InputInvariance(double=False, undo="bias"),
    "parameter_randomization": ParameterRandomization(),
    "data_randomization": lambda net, *given: DataRandomization()(net, copy.deepcopy(net), *given),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SANITY)
def test_sanity_checks_find_the_same_as_on_the_cpu(name):
    check, images = SANITY[name], toy_images()
    expected = check(toy(), attribution.GradCAM(), images, TARGET)
    with Device():
        results = check(to_device(toy()), attribution.GradCAM(), on_device(images), on_device(TARGET))
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.passed == theirs.passed
        assert ours.similarity == pytest.approx(theirs.similarity, rel=1e-3, abs=1e-3, nan_ok=True)
