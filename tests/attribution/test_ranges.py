"""Numbers out of their range are refused where they are given: documented ranges, written down by hand."""

import dataclasses
from functools import partial

import pytest
import torch
from support.attributions import METHODS

import interpretable_training.metrics as metrics
from interpretable_training.attribution import ScoreCAM
from interpretable_training.attribution.core.map_operations import mask_images

NAN, INF = float("nan"), float("inf")
NO_COUNT = [0, -1, 1.5, 2**63, 10**20, NAN, INF, True, "x", [], {}]
NO_POSITIVE = [0.0, -1.0, NAN, INF, True, "x", [], 1e300]
NO_SIZE = [-1.0, NAN, INF, True, "x", [], 1e300]
NO_SHARE = [-0.5, 1.5, NAN, INF, True, "x", []]
NO_SWITCH = [None, "x", 1.5, []]
WRONG = {
    **dict.fromkeys(("n", "steps", "batches", "local_draws", "chunk_size", "cells", "step", "levels"), NO_COUNT),
    "seed": [1.5, 2**63, NAN, True, "x"],
    **dict.fromkeys(("lr", "growth"), NO_POSITIVE),
    **dict.fromkeys(("sigma", "blur_sigma", "tolerance", "weight", "radius", "noise"), NO_SIZE),
    **dict.fromkeys(("threshold", "beta"), NO_SHARE),
    "topk": [0, 101, NAN, "x", True],
    "kernel": [0, -1, 1.5, True, 2**63],
}
NO_NORMALIZATION = [
    ((0.5,) * 3, None),
    (None, (0.2,) * 3),
    ((0.5,) * 3, (0.2,)),
    ((0.5,) * 3, (0.2, 0.0, 0.2)),
    ((0.5,) * 3, (0.2, -0.2, 0.2)),
    ((0.5, NAN, 0.5), (0.2,) * 3),
    ((0.5,) * 3, (0.2, INF, 0.2)),
    ((), ()),
    ("abc", "abc"),
    (5, 5),
]
MASKING = ["AverageDrop", "AverageIncrease", "AverageGain", "AverageDropInDeletion", "Coherency", "ADCC"]
MASKING += ["Insertion", "Deletion", "InsertionDeletion", "AOPC", "ARCC", "Infidelity", "SingleDeletion"]
NUMBERS = [
    *[("AOPC", "patch", v) for v in [*NO_COUNT, None]],
    *[("AOPC", "steps", v) for v in [*NO_COUNT, None]],
    *[("BoxAccuracy", "steps", v) for v in [*NO_COUNT, None]],
    *[("Insertion", "steps", v) for v in NO_COUNT],
    *[("Deletion", "chunk_size", v) for v in NO_COUNT],
    *[("MaxSensitivity", "radius", v) for v in NO_SIZE],
    *[("MaxSensitivity", "n", v) for v in NO_COUNT],
    *[("ROAD", "noise", v) for v in NO_SIZE],
    *[("Infidelity", "n", v) for v in NO_COUNT],
    *[("Infidelity", "side", v) for v in [0, *NO_SHARE]],
    *[("SingleDeletion", "patches", v) for v in NO_COUNT],
    *[("ROAD", "percentages", v) for v in [(), (NAN,), (0,), (100,), "abc", ("a",)]],
    *[("LocalizationError", "threshold", v) for v in NO_SHARE],
    *[("EnergyLocalizationError", "energy", v) for v in [0, *NO_SHARE]],
    *[("PointingGame", "tolerance", v) for v in NO_SIZE],
    *[("AverageDrop", "topk", v) for v in WRONG["topk"]],
    *[("AverageDrop", "preset", v) for v in [None, 1.5, [], {}]],
    *[("AverageIncrease", "signed", v) for v in NO_SWITCH],
]


def refused(build, option, value):
    with pytest.raises((TypeError, ValueError), match=f"expected .*{option}"):
        build(**{option: value})


@pytest.mark.parametrize("name", METHODS)
def test_methods_refuse_options_out_of_range(name):
    method = METHODS[name]
    for field in dataclasses.fields(method):
        default = getattr(method, field.name)
        values = NO_SWITCH if isinstance(default, bool) else WRONG.get(field.name, ())
        for value in () if isinstance(default, str) else values:  # texts are choices
            if value is not None or default is not None:
                refused(partial(dataclasses.replace, method), field.name, value)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in NUMBERS}))
def test_metrics_refuse_options_out_of_range(name):
    for metric, option, value in NUMBERS:
        if metric == name:
            refused(getattr(metrics, name), option, value)


@pytest.mark.parametrize(("mean", "std"), NO_NORMALIZATION)
def test_half_a_normalization_is_refused(mean, std):
    for name, method in METHODS.items():
        if hasattr(method, "mean"):
            with pytest.raises(ValueError, match="expected mean and std"):
                dataclasses.replace(METHODS[name], mean=mean, std=std)
    for name in MASKING:
        with pytest.raises(ValueError, match="expected mean and std"):
            getattr(metrics, name)(mean=mean, std=std)
    with pytest.raises(ValueError, match="expected mean and std"):
        mask_images(torch.ones(1, 3, 2, 2), torch.ones(1, 2, 2), mean, std)


def test_numbers_in_range_are_taken():
    assert ScoreCAM(mean=[0.5], std=torch.tensor([0.2]), chunk_size=1).chunk_size == 1
    assert metrics.MaxSensitivity(radius=0, n=1).radius == 0
