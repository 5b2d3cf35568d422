from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, Gradient, SmoothGrad

close = partial(assert_close, rtol=0, atol=1e-9)
Volume = partial(SmoothGrad, reduce="none")


def noise(n, images, seed=0):
    return torch.randn(n, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("sigma", [0.15, 5.0])
def test_smooth_grad_of_linear_model_is_its_weights(sigma, linear, images):
    w = torch.randn(2, 128, dtype=torch.float64)
    close(Volume(sigma=sigma)(linear(w), images, 1), w[1].view(1, 2, 8, 8).expand(2, -1, -1, -1))


def test_smooth_grad_without_noise_is_gradient(network, images):
    close(SmoothGrad(sigma=0.0)(network, images, 1), Gradient()(network, images, 1))


@pytest.mark.parametrize("statistic", ["mean", "square", "variance"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("chunk_size", [3, 32])
def test_smooth_grad_statistics_by_hand(statistic, absolute, chunk_size, square, images):
    """g[s] = x + sigma noise[s], where sigma is a share of each image's range unless it is absolute."""
    span = torch.ones(2, dtype=torch.float64) if absolute else images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    g = [images + 0.2 * span.view(2, 1, 1, 1) * e for e in noise(5, images, seed=3)]
    mean, mean_of_squares = sum(g) / 5, sum(x * x for x in g) / 5
    variance = sum((x - mean) ** 2 for x in g) / 5
    expected = {"mean": mean, "square": mean_of_squares, "variance": variance}[statistic]
    options = {"n": 5, "sigma": 0.2, "absolute": absolute, "statistic": statistic, "seed": 3, "chunk_size": chunk_size}
    close(Volume(**options)(square, images), expected)


def test_smooth_grad_variance_estimates_variance_of_noise(square, images):
    """Of 2000 copies, within 10 standard errors: sigma^2 sqrt(2 / 2000)."""
    V = Volume(n=2000, sigma=0.5, absolute=True, statistic="variance", chunk_size=500)(square, images[:1])
    assert (V - 0.25).abs().max() < 10 * 0.25 * (2 / 2000) ** 0.5


def test_smooth_grad_reduces_after_the_mean(square, images):
    g = images + 0.2 * noise(3, images).mean(0)
    close(SmoothGrad(n=3, sigma=0.2, absolute=True)(square, images), g.abs().amax(1))


@pytest.mark.parametrize("statistic", ["mean", "square", "variance"])
def test_smooth_grad_averages_maps_of_any_method(statistic, network, images):
    cam = GradCAM(layer="0")
    maps = torch.stack([cam(network, images + 0.2 * e, 1) for e in noise(3, images)])
    expected = {"mean": maps.mean(0), "square": (maps**2).mean(0), "variance": maps.var(0, correction=0)}[statistic]
    close(SmoothGrad(n=3, sigma=0.2, absolute=True, method=cam, statistic=statistic)(network, images, 1), expected)


def test_smooth_grad_defaults():
    assert (SmoothGrad().n, SmoothGrad().sigma, SmoothGrad().absolute) == (25, 0.15, False)


@pytest.mark.parametrize(("wrong", "match"), [({"n": 0}, "got 0"), ({"statistic": "median"}, "'median'")])
def test_smooth_grad_refuses_wrong_options(wrong, match, square, images):
    with pytest.raises(ValueError, match=match):
        SmoothGrad(**wrong)(square, images)
