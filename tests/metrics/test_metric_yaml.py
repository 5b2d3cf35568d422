"""Metrics from configuration files: by class path, with every option, also those that a base class takes."""

import pytest
import torch
from jsonargparse import ArgumentParser
from support.every_metric import MAKE
from torchmetrics import Metric

import interpretable_training.metrics as metrics
from interpretable_training.attribution import GradCAM
from interpretable_training.metrics.core.base import ImageMetric, same_passport

NAMES = [name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)]
NAMES = [name for name in NAMES if issubclass(getattr(metrics, name), ImageMetric)]
GRAD_CAM = {"class_path": "interpretable_training.attribution.GradCAM", "init_args": {"layer": "0"}}


def build(name, base=Metric, **options):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metric", type=base)
    given = {"class_path": f"interpretable_training.metrics.{name}", "init_args": options}
    return parser.instantiate_classes(parser.parse_object({"metric": given})).metric


def test_every_metric_has_its_tests():
    assert {type(make()).__name__ for make in MAKE.values()} <= set(NAMES)


@pytest.mark.parametrize("base", [Metric, ImageMetric])
@pytest.mark.parametrize("name", sorted({type(make()).__name__ for make in MAKE.values()}))
def test_without_options(name, base):
    built = build(name, base)
    assert type(built) is getattr(metrics, name)
    same_passport(built.passport(), getattr(metrics, name)().passport())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AverageDrop", {"space": "normalized", "relative": False, "topk": 20, "chunk_size": 4}),
        ("AverageDrop", {"preset": "torchcam"}),
        ("AverageIncrease", {"signed": True, "mean": [0.5], "std": [0.25]}),
        ("AverageGain", {"preset": "adcc", "score": "sigmoid"}),
        ("AverageDropInDeletion", {"clamp": True, "topk": 10.5}),
        ("Insertion", {"steps": 28, "preset": "ca_stream", "ties": "random", "seed": 3}),
        ("Deletion", {"substrate": "black", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "x_axis": "fraction"}),
        ("InsertionDeletion", {"substrate": "gaussian", "kernel": 5, "auc": "mean", "score": "logit"}),
        ("AOPC", {"patch": 4, "steps": 3, "substrate": "uniform", "seed": 1}),
        ("ROAD", {"percentages": [10, 50], "score": "accuracy", "noise": 0}),
        ("Coherency", {"rescale": False, "space": "pixel", "mean": [0.5], "std": [0.5]}),
        ("ADCC", {"average": "dataset", "topk": 10, "preset": "thesis"}),
        ("MaxSensitivity", {"radius": 0.1, "n": 3, "raw": True}),
        ("OfficialMetric", {"preset": "casme", "threshold": 0.7, "region": "mask"}),
        ("LocalizationError", {"iou": True, "connectivity": 8, "upstream": True}),
        ("EnergyLocalizationError", {"energy": 0.9, "region": "shortcut_mask"}),
        ("BoxAccuracy", {"preset": "maxboxaccv2", "deltas": [0.5, 0.75]}),
        ("PointingGame", {"ties": "fraction", "tolerance": 3, "region": "boxes"}),
        ("EnergyPointingGame", {"region": "shortcut_mask"}),
        ("PixelF1", {"per_box": True, "upstream": False}),
        ("PxAP", {"steps": 50, "region": "boxes"}),
        ("SaliencyMetric", {"p_on": "image", "score": "sigmoid", "chunk_size": 3}),
    ],
)
def test_options_reach_the_metric(name, options):
    same_passport(build(name, **options).passport(), getattr(metrics, name)(**options).passport())


@pytest.mark.parametrize("name", ["Coherency", "ADCC", "MaxSensitivity"])
def test_a_method_inside_a_metric(name):
    assert build(name, attribution=GRAD_CAM).attribution == GradCAM(layer="0")


@pytest.mark.parametrize("name", ["AverageDrop", "AverageGain", "Insertion", "ADCC", "Complexity"])
def test_options_of_torchmetrics_reach_it(name):
    assert build(name, compute_on_cpu=True).compute_on_cpu is True


@pytest.mark.parametrize("name", ["AverageDrop", "Insertion", "ADCC"])
def test_options_that_do_not_exist_are_refused(name):
    with pytest.raises(Exception, match="spcae"):
        build(name, spcae="pixel")
    with pytest.raises((TypeError, ValueError), match="spcae"):
        getattr(metrics, name)(spcae="pixel")


def test_choices_are_checked_while_parsing():
    with pytest.raises(Exception, match="thesi"):
        build("AverageDrop", preset="thesi")


def test_a_built_metric_measures():
    metric = build("AverageDrop", relative=False)
    metric.update(torch.tensor([0.8]), torch.tensor([0.5]))
    assert metric.compute().item() == pytest.approx(30)
