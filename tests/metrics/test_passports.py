"""Passports: flat facts that differ whenever an option changes the number."""

import inspect
import json

import pytest
import torch
from support.every_metric import ALL_METRICS, MAKE
from support.passport_cases import CASES, NORMAL, M, S

from interpretable_training.attribution import ExpectedGradients
from interpretable_training.metrics import (
    AOPC,
    AverageDrop,
    AverageDropInDeletion,
    AverageIncrease,
    Coherency,
    Deletion,
    Insertion,
    InsertionDeletion,
)
from interpretable_training.metrics.core.base import same_passport

WITHOUT_EFFECT = {"chunk_size", "kwargs", "self"}
every_metric = pytest.mark.parametrize("metric", CASES, ids=lambda m: m.__name__)


def parameters(metric):
    """Every keyword of the constructors up to ImageMetric's."""
    results = set()
    for cls in metric.__mro__:
        if cls.__name__ == "ImageMetric":
            return results - WITHOUT_EFFECT
        results |= set(inspect.signature(cls.__init__).parameters)
    raise AssertionError(metric)


@every_metric
def test_every_option_is_tried_below(metric):
    tried = {name for _, change in CASES[metric] for name in change}
    assert tried == parameters(metric)


@every_metric
def test_passports_differ_where_an_option_changes_the_number(metric):
    for base, change in CASES[metric]:
        a, b = metric(**base), metric(**{**base, **change})
        assert a.passport() != b.passport(), change
        assert a.facts.tolist() != b.facts.tolist(), change
        with pytest.raises(ValueError, match="same passport"):
            same_passport(a.passport(), b.passport())
        same_passport(a.passport(), metric(**base).passport())


@every_metric
def test_passports_are_flat_and_can_be_written_down(metric):
    for base, change in CASES[metric]:
        passport = metric(**{**base, **change}).passport()
        assert all(value is None or isinstance(value, (str, int, float, bool)) for value in passport.values())
        assert json.loads(json.dumps(passport)) == passport
        assert passport["metric"] == metric.__name__
        assert passport["direction"] in ("higher is better", "lower is better")
        assert {"formula", "range", "unit"} <= set(passport)


def test_cases_and_cheap_forms_cover_all_metrics():
    assert set(CASES) == set(ALL_METRICS.values()) == {type(make()) for make in MAKE.values()}


@pytest.mark.parametrize("name", MAKE)
def test_how_many_images_go_at_once_changes_no_fact(name):
    metric = MAKE[name]()
    before = metric.passport()
    metric.chunk_size = 3
    assert metric.passport() == before


def test_tensors_that_differ_anywhere_are_different_substrates():
    other = torch.zeros(1, 8, 8)
    other[0, 7, 7] = 1
    a, b = Deletion(substrate=torch.zeros(1, 8, 8)), Deletion(substrate=other)
    assert a.passport() != b.passport()
    same_passport(b.passport(), Deletion(substrate=other.clone()).passport())


def test_methods_with_other_tensors_are_other_methods():
    """Of large tensors repr shows the corners alone."""
    baselines = torch.zeros(2, 3, 32, 32)
    other = baselines.clone()
    other[0, 0, 16, 16] = 1
    a, b = (Coherency(ExpectedGradients(baselines=t)).passport() for t in (baselines, other))
    assert a != b


def test_without_mean_and_std_black_cannot_be_told():
    """Both spaces are then the same, and so are the passports."""
    same_passport(AverageDrop(space="pixel").passport(), AverageDrop(space="normalized").passport())
    same_passport(AverageDrop(space="normalized", **NORMAL).passport(), AverageDrop().passport())
    assert AverageDrop().passport()["mask_space"] == "normalized"
    assert AverageDrop(**NORMAL).passport()["mask_space"] == "pixel"
    same_passport(Deletion(substrate="mean", **NORMAL).passport(), Deletion(substrate="mean").passport())


def test_a_preset_is_what_it_stands_for():
    same_passport(Insertion(28, preset="ca_stream").passport(), Insertion(28, substrate="blur", kernel=5).passport())
    same_passport(
        AverageDrop(preset="pytorch_grad_cam").passport(), AverageDrop(space="normalized", relative=False).passport()
    )
    same_passport(AverageDrop(preset="torchcam").passport(), AverageDrop(score="logit").passport())
    same_passport(Deletion(preset="torchcam").passport(), Deletion(20, ties="index", x_axis="fraction").passport())
    assert Deletion().passport()["deletion_substrate"] == "mean"
    passport = InsertionDeletion().passport()
    assert (passport["insertion_substrate"], passport["insertion_kernel"], passport["insertion_sigma"]) == (
        "blur",
        11,
        5.0,
    )


@pytest.mark.parametrize("as_given", [list, torch.tensor, tuple])
def test_mean_and_std_may_be_lists_and_tensors(as_given):
    metric = AverageDrop(mean=as_given((0.5, 0.25, 0.125)), std=as_given((0.5, 0.25, 0.5)))
    same_passport(metric.passport(), AverageDrop(mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.5)).passport())


def test_the_formula_says_what_is_computed():
    assert AverageDrop().passport()["formula"] == "mean of relu(p - o) / p"
    assert AverageDrop(relative=False).passport()["formula"] == "mean of relu(p - o)"
    assert AverageIncrease(signed=True).passport()["formula"] == "mean of sign(o - p)"
    assert AverageDropInDeletion(clamp=True).passport()["formula"] == "mean of relu(p - d) / p"


@pytest.mark.parametrize(
    "metric",
    [AverageDrop(score="logit"), AverageDrop(score="logit", relative=False), AverageDropInDeletion(score="logit")],
)
def test_the_range_holds_for_logits_too(metric):
    """From 1 to -9 is a drop of 1000 percent."""
    p, o = torch.tensor([1.0]), torch.tensor([-9.0])
    value = metric.measure(prob=p, **{"prob_deleted" if "Deletion" in type(metric).__name__ else "prob_masked": o})
    low, high = (float(bound) for bound in metric.passport()["range"].split(" to "))
    assert low <= value.item() <= high


def test_normalization_is_filled_in_where_it_was_left_open():
    adapted = AverageDrop().adapted(M, S, False)
    same_passport(adapted.passport(), AverageDrop(**NORMAL).passport())
    given = AverageDrop(mean=(0.5,) * 3, std=(0.5,) * 3)
    same_passport(given.adapted(M, S, False).passport(), given.passport())
    same_passport(
        Deletion(substrate="black").adapted(M, S, False).passport(), Deletion(substrate="black", **NORMAL).passport()
    )
    same_passport(AOPC(substrate="black").adapted(M, S, False).passport(), AOPC(substrate="black", **NORMAL).passport())
    assert AverageDrop().adapted(M, S, True).passport()["score"] == "sigmoid"
    assert AverageDrop(score="logit").adapted(M, S, True).passport()["score"] == "logit"


@pytest.mark.parametrize("name", MAKE)
def test_an_adapted_copy_leaves_the_original_alone(name):
    metric = MAKE[name]()
    before = metric.passport()
    metric.adapted(M, S, True)
    assert metric.passport() == before
