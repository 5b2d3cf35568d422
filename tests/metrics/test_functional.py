"""The functions give the numbers of the classes, and those worked out by hand."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training import metrics
from interpretable_training.metrics import functional

PROB, MASKED = torch.tensor([0.8, 0.5, 0.0, 1.0]), torch.tensor([0.4, 0.6, 0.2, 1.0])
PAIRS = {
    "average_drop": ("AverageDrop", [50, 0, 0, 0]),
    "average_increase": ("AverageIncrease", [0, 100, 100, 0]),
    "average_gain": ("AverageGain", [0, 20, 20, 0]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_functions_give_numbers_by_hand_and_of_the_class(name):
    cls, expected = PAIRS[name]
    values = getattr(functional, name)(PROB, MASKED)
    assert_close(values, torch.tensor(expected).float())
    metric = getattr(metrics, cls)()
    metric.update(prob=PROB, prob_masked=MASKED)
    assert_close(metric.compute(), values.mean())


def test_options_of_functions_are_those_of_the_classes():
    assert_close(functional.average_drop(PROB, MASKED, relative=False), torch.tensor([40.0, 0, 0, 0]))
    assert functional.average_increase(PROB, MASKED, signed=True).tolist() == [-100, 100, 100, 0]
    assert_close(functional.average_drop_in_deletion(PROB, MASKED), torch.tensor([50.0, -20, 0, 0]))
    assert_close(functional.average_drop_in_deletion(PROB, MASKED, clamp=True), torch.tensor([50.0, 0, 0, 0]))


def test_adcc_is_the_harmonic_mean_of_its_three_terms():
    coherency, complexity, drop = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    terms = torch.stack([coherency, 1 - complexity, 1 - drop]).double()
    assert_close(functional.adcc(coherency, complexity, drop).double(), 1 / (1 / terms).mean(0), atol=1e-6, rtol=1e-5)
    assert functional.adcc(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0)) == 0


def test_numbers_that_are_not_stay_so():
    nan = torch.tensor([torch.nan])
    for name in PAIRS:
        assert getattr(functional, name)(nan, PROB[:1]).isnan().all()
    assert functional.average_drop(-PROB[:1], MASKED[:1]).isnan().all()  # logits below 0
