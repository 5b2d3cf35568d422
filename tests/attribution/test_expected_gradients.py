from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradients, IntegratedGradients

close = partial(assert_close, rtol=0, atol=1e-9)
Volume = partial(ExpectedGradients, reduce="none")


@pytest.fixture
def baselines():
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("n", [4, 12])
def test_expected_gradients_of_linear_model_by_hand(n, linear, images, baselines):
    """With every baseline used equally often phi = (x - mean x') w, whatever a."""
    w = torch.randn(1, 128, dtype=torch.float64)
    phi = Volume(baselines=baselines, n=n, draws="sequential", chunk_size=5)(linear(w), images)
    close(phi, (images - baselines.mean(0)) * w.view(2, 8, 8))


def test_expected_gradients_draw_between_baseline_and_image(square, images, baselines):
    """phi = (x - x') (x' + a (x - x')) with one a in (0, 1) for the whole image."""
    for seed in range(5):
        phi = Volume(baselines=baselines[:1], n=1, seed=seed)(square, images)
        a = (phi / (images - baselines[0]) - baselines[0]) / (images - baselines[0])
        assert 0 < a.mean() < 1
        assert_close(a, a.mean().expand_as(a), rtol=0, atol=1e-6)


def test_expected_gradients_of_one_baseline_tend_to_integrated(square, images, baselines):
    """One a in each of n intervals has a mean within 1 / (2 n) of 1 / 2; phi - IG = (x - x')^2 (mean a - 1 / 2)."""
    exact = IntegratedGradients(baseline=baselines[0], reduce="none", steps=2)(square, images)
    for n in (10, 1000):
        phi = Volume(baselines=baselines[:1], n=n, stratified_alpha=True, chunk_size=2000)(square, images)
        assert ((phi - exact).abs() <= 0.9 * (images - baselines[0]) ** 2 / (2 * n)).all()


def test_expected_gradients_draws_estimate_the_expectation(linear, images, baselines):
    """phi / w = x - mean of the drawn x', whose standard error is that of 4000 draws of 4 baselines."""
    phi = Volume(baselines=baselines, n=4000, chunk_size=8000)(linear(torch.ones(1, 128)), images)
    error = (phi - (images - baselines.mean(0))).abs() / (baselines.std(0, correction=0) / 4000**0.5)
    assert 0 < error.max() < 6


def test_expected_gradients_draws_follow_seed_for_all_images(square, images, baselines):
    twice = images[:1].expand(2, -1, -1, -1)
    one, again, other = (Volume(baselines=baselines, n=3, seed=s)(square, twice) for s in (0, 0, 1))
    close(one[0], one[1])
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_expected_gradients_map_can_be_trained(images, baselines):
    """In a linear model the sum of phi has the derivative x - mean x' with respect to w."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 2)).double()
    method = Volume(baselines=baselines, n=4, draws="sequential")
    method(model, images, 1, create_graph=True).sum().backward()
    expected = (images - baselines.mean(0)).sum(0).flatten()
    close(model[1].weight.grad, torch.stack([0 * expected, expected]))


def test_expected_gradients_reduce_by_absolute_sum(linear, images, baselines):
    method = ExpectedGradients(baselines=baselines, n=4, draws="sequential")
    close(method(linear(torch.ones(1, 128)), images), (images - baselines.mean(0)).sum(1).abs())
    assert ExpectedGradients(baselines).n == 50


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"baselines": torch.zeros(3, 1, 8, 8)}, r"\(N, \*\(2, 8, 8\)\) like the images, got \(3, 1, 8, 8\)"),
        ({"baselines": torch.zeros(0, 2, 8, 8)}, r"got \(0, 2, 8, 8\)"),
        ({"n": 0}, "got 0"),
        ({"draws": "all"}, "'all'"),
    ],
)
def test_expected_gradients_refuse_wrong_options(wrong, match, square, images, baselines):
    with pytest.raises(ValueError, match=match):
        ExpectedGradients(**{"baselines": baselines, **wrong})(square, images)
