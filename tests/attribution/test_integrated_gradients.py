from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import IntegratedGradients
from interpretable_training.attribution.core.map_operations import blur

close = partial(assert_close, rtol=0, atol=1e-9)
Volume = partial(IntegratedGradients, reduce="none")
CUBE_OVER_FOUR_STEPS = {  # mean of 3 a^2: the integral is 1
    "left": 3 * (0 + 1 + 4 + 9) / 64,
    "right": 3 * (1 + 4 + 9 + 16) / 64,
    "midpoint": 3 * (1 + 9 + 25 + 49) / 256,
    "trapezoid": 3 * (0 / 2 + 1 + 4 + 9 / 2) / 27,
    "gauss_legendre": 1.0,
}


@pytest.fixture
def cube(function):
    return function(lambda x: x.pow(3).flatten(1).sum(1))


@pytest.mark.parametrize("quadrature", CUBE_OVER_FOUR_STEPS)
def test_integrated_gradients_quadratures_by_hand(quadrature, cube):
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    phi = Volume(steps=4, quadrature=quadrature)(cube, x)
    close(phi.item(), CUBE_OVER_FOUR_STEPS[quadrature])


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_integrated_gradients_points_equal_numpy_leggauss(steps, function):
    """On y = exp(9 x), which no quadrature of few points integrates."""
    a, w = np.polynomial.legendre.leggauss(steps)
    model, x = function(lambda x: (9 * x).exp().flatten(1).sum(1)), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    expected = sum(w_s / 2 * x * 9 * (9 * (a_s + 1) / 2 * x).exp() for a_s, w_s in zip(a, w))
    assert_close(Volume(steps=steps)(model, x), expected, rtol=1e-9, atol=1e-9)


def test_integrated_gradients_default_is_50_gauss_legendre_points():
    assert (IntegratedGradients().steps, IntegratedGradients().quadrature) == (50, "gauss_legendre")


def test_integrated_gradients_equal_printed_sum(network, images):
    base = torch.randn(2, 8, 8, dtype=torch.float64)
    expected = torch.zeros_like(images)
    for s in range(5):
        x = (base + (s + 0.5) / 5 * (images - base)).requires_grad_()
        expected += torch.autograd.grad(network(x)[:, 1].sum(), x)[0] / 5
    for chunk_size in (1, 3, 32):
        phi = Volume(steps=5, quadrature="midpoint", baseline=base, chunk_size=chunk_size)(network, images, 1)
        close(phi, (images - base) * expected)


@pytest.mark.parametrize("score", ["logit", "prob"])
def test_integrated_gradients_are_complete(score, network, images):
    """The sum of phi is the score of the image minus that of the baseline; delta is what is missing."""
    smooth, x = network[1], network[0](images).detach()
    method = IntegratedGradients(reduce="signed_sum", score=score)
    phi, target = method(smooth, x, 2), torch.tensor([2, 2])
    scores = [smooth(x) if score == "logit" else smooth(x).softmax(1) for x in (x, 0 * x)]
    close(phi.sum((1, 2)), (scores[0] - scores[1])[:, 2].detach())
    close(method.delta(smooth, x, target), torch.zeros(2, dtype=torch.float64))


def test_integrated_gradients_delta_of_too_few_steps(cube):
    """With one midpoint the cube gets 3/4 instead of 1."""
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    close(IntegratedGradients(steps=1).delta(cube, x).item(), -0.25)


@pytest.mark.parametrize("quadrature", ["gauss_legendre", "left", "right", "midpoint"])
def test_integrated_gradients_of_linear_model_need_one_step(quadrature, linear, images):
    w = torch.randn(1, 128, dtype=torch.float64)
    close(Volume(steps=1, quadrature=quadrature)(linear(w), images), images * w.view(2, 8, 8))


def test_integrated_gradients_of_rectified_linear_model(function, images):
    """y = relu(<w, x>) is homogeneous, so along the path its gradient is constant."""
    w = torch.randn(128, dtype=torch.float64)
    w = w * (images.flatten(1) @ w)[0].sign()
    x = torch.stack([images[0], -images[0]])
    phi = Volume(steps=3)(function(lambda x: (x.flatten(1) @ w).relu()), x)
    close(phi[0], images[0] * w.view(2, 8, 8))
    assert not phi[1].any()


def test_integrated_gradients_baselines_by_hand(linear, images):
    """In a linear model phi = (x - x') w shows the baseline x'."""
    model, black = linear(torch.ones(1, 128)), {"mean": (0.4, 0.5), "std": (0.2, 0.4)}
    shown = lambda **options: images - Volume(steps=1, **options)(model, images)  # noqa: E731
    close(shown(), 0 * images)
    close(shown(baseline="black", **black)[:, 0], torch.full((2, 8, 8), -2.0, dtype=torch.float64))
    close(shown(baseline="black", **black)[:, 1], torch.full((2, 8, 8), -1.25, dtype=torch.float64))
    close(shown(baseline="mean"), images.mean((2, 3), keepdim=True).expand_as(images))
    close(shown(baseline="blur"), blur(images, 11, 5.0))
    close(shown(baseline=torch.tensor(3.0)), torch.full_like(images, 3))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"steps": 0}, "got 0"),
        ({"steps": 1, "quadrature": "trapezoid"}, "got 1"),
        ({"quadrature": "simpson"}, "got 'simpson'"),
        ({"baseline": "white"}, "got 'white'"),
        ({"baseline": "black"}, "mean= and std="),
        ({"baseline": torch.zeros(3, 8, 8)}, r"baseline.*\(3, 8, 8\)"),
    ],
)
def test_integrated_gradients_refuse_wrong_options(wrong, match, linear, images):
    with pytest.raises(ValueError, match=match):
        IntegratedGradients(**wrong)(linear(torch.ones(2, 128)), images)
