"""Intervals and p-values against slow loops, closed forms and counts by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.evaluation import bootstrap
from interpretable_training.evaluation.bootstrap import Draws, interval, p_value


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_means(images, values, resamples, seed):
    """(1) with lists: draw images, put their rows together, average what is a number."""
    ids = sorted(set(images.tolist()))
    drawn = torch.randint(len(ids), (resamples, len(ids)), generator=torch.Generator().manual_seed(seed))
    out = []
    for row in drawn.tolist():
        picked = [values[images == ids[i]] for i in row]
        out.append(torch.cat(picked).nanmean(0))
    return torch.stack(out)


@pytest.mark.parametrize(
    "images",
    [torch.arange(7), torch.tensor([5, 5, 2, 9, 9, 9, 2]), torch.tensor([4] * 7)],
    ids=["one row each", "several rows", "one image"],
)
def test_means_are_those_of_a_slow_loop(images):
    values = normal(7, 3)
    values[1, 0] = values[4, 1] = math.nan
    assert_close(Draws(images, 20, seed=3).means(values), slow_means(images, values, 20, 3))


def test_means_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values = normal(6, 2)
    whole = Draws(torch.arange(6), 11).means(values)
    for at_once in (1, 13, 30):
        monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
        assert_close(Draws(torch.arange(6), 11).means(values), whole, rtol=0, atol=0)


def test_seeds_decide_the_draws_and_no_other_generator_is_touched():
    values, state = normal(9, 1), torch.get_rng_state()
    first = Draws(torch.arange(9), 30, seed=1).means(values)
    assert_close(Draws(torch.arange(9), 30, seed=1).means(values), first, rtol=0, atol=0)
    assert not torch.equal(Draws(torch.arange(9), 30, seed=2).means(values), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_columns_are_drawn_alike():
    """Else the difference of a column and itself plus 1 would vary."""
    a = normal(8, 1)
    m = Draws(torch.arange(8), 40).means(torch.cat([a, a + 1], 1))
    assert_close(m[:, 1] - m[:, 0], torch.ones(40, dtype=torch.float64))


def test_the_interval_of_normal_data_is_known():
    """mean +- 1.96 s / sqrt(n), up to the noise of 4000 draws."""
    n, x = 400, 5 + 2 * normal(400, 1)
    low, high = interval(Draws(torch.arange(n), 4000).means(x)[:, 0])
    half = 1.96 * float(x.std(correction=0)) / math.sqrt(n)
    assert abs(low - (float(x.mean()) - half)) < 0.08 * half
    assert abs(high - (float(x.mean()) + half)) < 0.08 * half


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    x = normal(40, 300)  # 300 data sets of 40 images with the true mean 0
    m = Draws(torch.arange(40), 500).means(x)
    held = sum(low <= 0 <= high for low, high in map(interval, m.unbind(1))) / 300
    assert 0.89 <= held <= 0.98


def test_rows_of_one_image_do_not_make_the_interval_narrower():
    """Each image ten times is no more evidence than once."""
    x, ten = normal(30, 1), torch.arange(30).repeat(10)
    once = interval(Draws(torch.arange(30), 200).means(x)[:, 0])
    assert interval(Draws(ten, 200).means(x.repeat(10, 1))[:, 0]) == pytest.approx(once)


def test_the_interval_by_hand():
    """Of the draws 0..100, in whatever order, percentiles are the numbers themselves."""
    m = torch.arange(101.0, dtype=torch.float64).flip(0)
    assert interval(m) == (2.5, 97.5)
    assert interval(torch.cat([m, torch.tensor([math.nan])])) == (2.5, 97.5)
    assert interval(torch.full((9,), 3.0)) == (3.0, 3.0)
    assert all(map(math.isnan, interval(torch.tensor([math.nan]))))


def test_p_values_by_hand():
    d = torch.tensor([1.0, 2, 3, -1, 0, 4, 5, 6, 7])
    assert p_value(d) == 2 * (1 + 2) / 10  # -1 and 0 are not above 0
    assert p_value(-d) == p_value(d)
    assert p_value(d, rounding=1.5) == 2 * (1 + 3) / 10  # 1 counts as 0 too
    assert p_value(torch.ones(999)) == 2 / 1000  # the least that 999 draws can say
    assert p_value(torch.zeros(999)) == 1
    assert p_value(torch.full((999,), 1e-9), rounding=1e-8) == 1
    assert math.isnan(p_value(torch.tensor([math.nan])))


def test_equal_columns_have_a_p_of_one_and_a_shift_the_least():
    x = normal(50, 1)
    m = Draws(torch.arange(50), 500).means(torch.cat([x, x, x + 0.5, x + normal(50, 1, seed=9) * 3], 1))
    d = m - m[:, :1]
    assert p_value(d[:, 1]) == 1
    assert p_value(d[:, 2]) == 2 / 501  # paired: x itself cancels, however much it varies
    assert p_value(d[:, 3]) > 0.05


def test_pairing_finds_what_an_unpaired_comparison_does_not():
    x = 10 * normal(40, 1)
    y = x + 0.5 + 0.1 * normal(40, 1, seed=1)
    draws = Draws(torch.arange(40), 500)
    m = draws.means(torch.cat([x, y], 1))
    unpaired = draws.means(y)[:, 0] - Draws(torch.arange(40), 500, seed=7).means(x)[:, 0]
    assert p_value(m[:, 1] - m[:, 0]) == 2 / 501
    assert p_value(unpaired) > 0.2


def test_p_values_of_no_difference_are_spread_evenly():
    """Under the null hypothesis a tenth of them lies below 0.1."""
    d = Draws(torch.arange(60), 400).means(normal(60, 400))
    below = sum(p_value(column) < 0.1 for column in d.unbind(1)) / 400
    assert 0.06 < below < 0.16


def test_draws_without_a_number_are_left_out():
    """One of two images has no number: a draw that holds only that one says nothing."""
    m = Draws(torch.arange(2), 200).means(torch.tensor([[math.nan], [3.0]], dtype=torch.float64))[:, 0]
    assert 0.15 < float(m.isnan().double().mean()) < 0.35
    assert interval(m) == (3.0, 3.0)
