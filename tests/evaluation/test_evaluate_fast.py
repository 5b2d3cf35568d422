"""Faster passes of `evaluate`: bfloat16 and compiled ones change the numbers by rounding, and the table says so."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, LayerCAM, ScoreCAM
from interpretable_training.attribution.core import compiled_passes, scoring
from interpretable_training.evaluation.runner import moments
from interpretable_training.metrics import AverageDrop, Coherency, Complexity, Insertion, evaluate

METHODS = {"gradcam": GradCAM("3"), "layercam": LayerCAM("0"), "scorecam": ScoreCAM("3")}
METRICS = {"ad": AverageDrop(), "insertion": Insertion(steps=6), "complexity": Complexity(), "coherency": Coherency()}


def network():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


X, Y = torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0, 1])


def table_of(model=None, **options):
    data = DataLoader(TensorDataset(X, Y), batch_size=2)
    return evaluate(model or network(), METHODS, METRICS, data, resamples=5, progress=False, **options)


def numbers_of(table, metric):
    return torch.stack([table.per_image(name, metric) for name in METHODS])


def test_bfloat16_changes_scores_by_rounding_and_no_gradient_maps():
    model = network()
    expected, actual = table_of(model), table_of(model, precision="bf16")
    assert actual.facts["precision"] == "float32, passes without gradient in bfloat16"
    assert expected.facts["precision"] == "float32"
    for metric, largest in (("ad", 1.0), ("insertion", 0.3)):
        change = (numbers_of(actual, metric) - numbers_of(expected, metric)).abs().max()
        assert 0 < change < largest  # percent; probabilities near 0.25 are rounded to 0.001
    for name in ("gradcam", "layercam"):
        for metric in ("complexity", "coherency"):
            assert torch.equal(actual.per_image(name, metric), expected.per_image(name, metric))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_compiled_passes_are_told(monkeypatch):
    compiled = []

    def pretend(module, dynamic):
        compiled.append(module)
        return lambda images: module(images)

    monkeypatch.setattr(torch, "compile", pretend)
    monkeypatch.setattr(compiled_passes, "AFTER", 2)
    model = network()
    actual = table_of(model, compile=True)
    assert set(compiled) == {model}
    assert actual.facts["compiled"] == f"{len(compiled)} shapes compiled in 0 s"
    assert "compiled" not in table_of(model).facts
    for metric in METRICS:
        assert_close(numbers_of(actual, metric), numbers_of(table_of(model), metric))


def test_one_batch_alone_and_after_others_gives_the_same_bits(monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "CALL", -1)  # layers are folded although the network is small
    monkeypatch.setattr(scoring, "SETUP", float("inf"))  # from the first pass on or never
    whole = table_of(cache=tmp_path)
    (tmp_path / "part-000001.pt").unlink()
    again = table_of(cache=tmp_path)
    assert again.facts["batch norms"] == whole.facts["batch norms"] == "1 of 1 folded"
    for metric in METRICS:
        assert torch.equal(numbers_of(again, metric), numbers_of(whole, metric))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "half"}, "expected precision to be one of"),
        ({"compile": "yes"}, "expected compile as True or False, got 'yes'"),
    ],
)
def test_other_values_are_refused(option, message):
    with pytest.raises((ValueError, TypeError), match=message):
        table_of(**option)


def test_curves_that_are_not_numbers_are_left_out_of_sums():
    s = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [5.0, 6.0]])
    assert moments(s).tolist() == [[2, 2], [6, 8], [26, 40]]  # number, sum, sum of squares


def test_bfloat16_is_for_float32_alone():
    with pytest.raises(ValueError, match="expected a float32 model without autocast for precision='bf16', got float64"):
        table_of(network().double(), precision="bf16")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="got float32, autocast to bfloat16"):
        table_of(precision="bf16")
