"""The box of a map against the probability inside: numbers by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import SaliencyMetric
from interpretable_training.metrics.saliency_metric import crops


def test_the_whole_image_and_a_sure_model_give_zero(scored):
    model = scored(lambda x: torch.ones(len(x), dtype=torch.float64))
    S = torch.zeros(1, 10, 20).double()  # no box: the whole image
    assert SaliencyMetric().measure(model=model, images=torch.rand(1, 3, 10, 20).double(), saliency=S, target=1) == 0


@pytest.mark.parametrize(("side", "expected"), [(1, math.log(0.05)), (5, math.log(25 / 100)), (10, 0.0)])
def test_small_boxes_are_no_better_than_a_twentieth(scored, side, expected):
    model = scored(lambda x: torch.ones(len(x), dtype=torch.float64))
    S = torch.zeros(1, 10, 10).double()
    S[:, :side, :side] = 1
    results = SaliencyMetric().measure(model=model, images=torch.rand(1, 3, 10, 10).double(), saliency=S, target=1)
    assert_close(results[0], torch.tensor(expected).double())


def test_the_probability_is_of_what_is_inside_the_box(scored):
    """p is the mean: 1 inside of the box, 1/4 on the image; cubic interpolation of a constant is constant."""
    model = scored(lambda x: x.mean((1, 2, 3)))
    x = torch.zeros(1, 1, 8, 8).double()
    x[:, :, :4, :4] = 0.8
    S = x[:, 0] / 0.8
    results = SaliencyMetric().measure(model=model, images=x, saliency=S, target=1)
    assert_close(results[0], torch.tensor(math.log(0.25) - math.log(0.8)).double())
    results = SaliencyMetric(p_on="image").measure(model=model, images=x, saliency=S, target=1)
    assert_close(results[0], torch.tensor(math.log(0.25) - math.log(0.2)).double())


def test_a_map_without_a_box_has_the_cross_entropy(network, images, target):
    results = SaliencyMetric().measure(
        model=network, images=images, saliency=torch.zeros(5, 12, 8).double(), target=target
    )
    expected = torch.nn.functional.cross_entropy(network(images), target, reduction="none")
    assert_close(results, expected.detach())


def test_a_published_box_without_pixels_shows_nothing(scored):
    model = scored(lambda x: 0.3 + 0 * x.mean((1, 2, 3)) + x.abs().amax((1, 2, 3)).clamp(max=0.5))
    S, x = torch.zeros(1, 10, 10).double(), torch.ones(1, 1, 10, 10).double()
    S[0, 4, 4] = 1
    results = SaliencyMetric("casme").measure(model=model, images=x, saliency=S, target=1)
    assert_close(results[0], torch.tensor(math.log(0.05) - math.log(0.3)).double())


def test_a_probability_of_zero_is_cut_off(function):
    model = function(lambda x: torch.tensor([[0.0, -1e4]]).double().expand(len(x), 2))
    results = SaliencyMetric().measure(
        model=model, images=torch.rand(1, 1, 4, 4).double(), saliency=torch.zeros(1, 4, 4).double(), target=1
    )
    assert results.item() == pytest.approx(-math.log(1e-12))
    assert results.item() <= SaliencyMetric.bounds[1]


def test_crops_fill_the_image():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(crops(x, torch.tensor([[0.0, 0, 4, 4]])), x)
    one = crops(x, torch.tensor([[2.0, 1, 3, 2]]))
    assert_close(one, torch.full((1, 1, 4, 4), 6.0))
