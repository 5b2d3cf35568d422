"""Extremal perturbation does not depend on the unit or the zero of the score, and finds weak scored, too."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExtremalPerturbation
from interpretable_training.attribution.extremal_perturbation import _blurred, _Mask, _pyramid

Small = partial(ExtremalPerturbation, step=4, sigma=6.0, blur_sigma=4.0)


@pytest.fixture
def pattern():
    """Stripes, which blur takes away."""
    x = torch.zeros(1, 1, 24, 24)
    x[..., ::4] = x[..., 1::4] = 1.0
    return x


def contrast(gain, top=6, left=6):
    """The score sees the stripes in a square of 12 pixels alone."""

    def y(x):
        seen = x[:, 0, top : top + 12, left : left + 12]
        return gain * (seen - seen.mean((1, 2), keepdim=True)).square().mean((1, 2)).sqrt()[:, None]

    return y


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("contrastive", [False, True])
def test_the_unit_and_the_zero_of_the_score_do_not_matter(variant, contrastive, network, images):
    method = Small(steps=8, variant=variant, contrastive=contrastive)
    scaled = nn.Sequential(network, nn.Linear(3, 3).double())
    with torch.no_grad():
        scaled[1].weight.copy_(1000 * torch.eye(3))
        scaled[1].bias.fill_(-7.0)
    assert_close(method(scaled, images, 1), method(network, images, 1))


@pytest.mark.parametrize(("gain", "top", "left"), [(1e-3, 6, 6), (1e3, 6, 6), (1.0, 0, 12)])
def test_what_the_score_is_made_of_is_found_however_small_it_is(gain, top, left, function, pattern):
    """At the default weight of the area, which reaches that of 800 steps in 150."""
    method = Small(areas=[0.25], steps=150, growth=1.0187, step=2, sigma=3.0, mirror=False)
    m = method(function(contrast(gain, top, left)), pattern, 1)[0]
    assert m[top : top + 12, left : left + 12].sum() / m.sum() > 0.7
    assert abs(m.mean() - 0.25) < 0.05


def test_without_the_unit_a_small_score_is_lost(function, pattern):
    """The area decides alone: the masks of squares at opposite corners are the same, of the same area."""
    method = Small(areas=[0.25], steps=60, growth=1.04, step=2, sigma=3.0, mirror=False, relative=False)
    first, last = (method(function(contrast(1e-7, at, at)), pattern, 1) for at in (0, 12))
    assert_close(first, last, rtol=0, atol=0.02)
    assert abs(first.mean() - 0.25) < 0.05


@pytest.mark.parametrize("size", [(64,), (23, 30), (9, 10, 11)])
@pytest.mark.parametrize(("step", "sigma"), [(4, 6.0), (7, 21.0), (1, 0.5)])
def test_cells_of_one_hide_nothing_anywhere(size, step, sigma):
    """No border and no place between cells is brighter than another one: the area has nothing to prefer."""
    mask = _Mask(torch.zeros(1, 1, *size), step, sigma)
    assert torch.equal(mask(torch.ones(2, *mask.grid)), torch.ones(2, *size))
    values = mask(torch.rand(8, *mask.grid, generator=torch.Generator().manual_seed(0)))
    assert values.min() >= 0
    assert values.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_at_their_bounds_can_move(value):
    """What is hidden or shown altogether has a slope, so that the score can bring it back."""
    mask = _Mask(torch.zeros(1, 1, 12, 12, dtype=torch.float64), 4, 6.0)
    g = torch.full((1, 3, 3), value, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mask(g).sum(), g)
    assert (slope > 0).all()
    inner = 1e-6 if value == 0 else 1 - 1e-6
    moved = mask(torch.full((1, 3, 3), inner, dtype=torch.float64)) - mask(g.detach())
    assert_close(slope.sum(), moved.sum() / (inner - value), rtol=1e-3, atol=0)


def test_an_image_without_values_blurs_to_none():
    x = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    m = torch.full((2, 6, 6), 0.4, dtype=torch.float64)
    m[1, 2, 3] = torch.nan
    seen = _blurred(_pyramid(x, 4, 2.0, "replicate"), m)
    assert_close(seen[0], x[0])
    assert seen.isnan().nonzero().tolist() == [[1, 0, 2, 3]]


@pytest.mark.parametrize("score", ["prob", "logprob", "logit"])
def test_contrast_is_that_of_what_is_explained(score, function, images):
    """Of two classes: p - (1 - p), log p - log(1 - p) = y - 0, y - 0; one logit stands for the same two."""
    w = torch.randn(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def y(x):
        return (x.flatten(1) @ w / 10)[:, None]

    two = function(lambda x: torch.cat([0 * y(x), y(x)], 1))
    explained = {"prob": lambda out: 2 * out.softmax(1)[:, 1], "logprob": lambda out: out[:, 1]}
    expected = Small(steps=4)(two, images, explained.get(score, explained["logprob"]))
    method = Small(steps=4, contrastive=True, score=score)
    assert_close(method(two, images, 1), expected)
    assert_close(method(function(y), images, 1), expected)
