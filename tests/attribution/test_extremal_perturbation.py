"""Extremal perturbation by its formula, and its independence of unit and zero of the score."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExtremalPerturbation
from interpretable_training.attribution.core.map_operations import blur
from interpretable_training.attribution.extremal_perturbation import _blurred, _Mask, _pyramid

Small = partial(ExtremalPerturbation, step=4, sigma=6.0, blur_sigma=4.0)


@pytest.mark.parametrize("size", [(11, 14), (17,)])
def test_extremal_mask_is_smooth_maximum_over_cells(size):
    x = torch.zeros(2, 1, *size, dtype=torch.float64)
    mask = _Mask(x, step=4, sigma=6.0)
    assert mask.grid == [math.ceil(s / 4) for s in size]
    g = torch.rand(2, *mask.grid, dtype=torch.float64)
    m, radius = mask(g), 1 + math.ceil(6 / 4)
    for u in itertools.product(*map(range, size)):
        near = [range(c // 4 - radius, c // 4 + radius + 1) for c in u]
        values, ones = [], []
        for v in torch.cartesian_prod(*map(torch.tensor, near)).reshape(-1, len(size)).tolist():
            distance = math.dist(u, [4 * c for c in v])
            inside = all(0 <= c < n for c, n in zip(v, mask.grid))
            height = g[(slice(None), *v)] if inside else torch.zeros(2, dtype=torch.float64)
            kernel = math.exp(-2 * max(distance / 6 - 0.5, 0) ** 2)
            values.append(height * kernel)
            ones.append(torch.tensor(inside * kernel, dtype=torch.float64))
        values, ones = torch.stack(values, 1), torch.stack(ones)
        peak = (ones * (20 * ones).softmax(0)).sum()
        assert_close(m[(slice(None), *u)], ((values * (20 * values).softmax(1)).sum(1) / peak).clamp(max=1))


def test_extremal_masks_of_one_and_zero_keep_and_blur_image():
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    pyramid = _pyramid(x, 5, 4.0, "replicate")
    assert_close(_blurred(pyramid, torch.ones(2, 12, 12).double()), x)
    hidden = blur(x, 33, 4.0)
    assert_close(_blurred(pyramid, torch.zeros(2, 12, 12).double()), hidden)
    between = _blurred(pyramid, torch.full((2, 12, 12), 0.3).double())  # 0.2 of the way from level 1 to level 2
    assert_close(between, 0.8 * blur(x, 25, 3.0) + 0.2 * blur(x, 17, 2.0))


def test_extremal_blur_pads_with_zeros_as_published():
    """A two-dimensional convolution with zeros around: of an image of ones a corner keeps a quarter and a bit."""
    x = torch.randn(2, 3, 20, 26, dtype=torch.float64)
    x[0] = 1
    t = torch.arange(-16, 17, dtype=torch.float64)
    kernel = (-(t[:, None] ** 2 + t**2) / (2 * 4.0**2)).exp()
    expected = F.conv2d(x.flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None], padding=16).view_as(x)
    assert ExtremalPerturbation().borders == "constant"
    assert_close(_pyramid(x, 2, 4.0, "constant")[:, 0], expected)
    assert 0.25 < expected[0, 0, 0, 0] < 0.35
    assert_close(_pyramid(x, 2, 4.0, "replicate")[0, 0], torch.ones_like(x[0]))


@pytest.mark.parametrize("borders", ["constant", "replicate", "reflect"])
def test_extremal_borders_change_the_mask(borders, function):
    """The score is what blur leaves in a corner of an image of ones: zeros around it are the only slope there is."""
    net = function(lambda x: 100 * x[:, 0, :4, :4].mean((1, 2))[:, None])
    S = Small(areas=[0.1], steps=40, borders=borders)(net, torch.ones(1, 1, 24, 24), 1)[0]
    corner, opposite = S[:4, :4].mean(), S[-4:, -4:].mean()
    assert (corner > opposite + 0.2) == (borders == "constant")


@pytest.mark.parametrize("relative", [True, False])
def test_extremal_ascent_equals_sgd_of_torch(relative, network, images):
    """Stochastic gradient ascent with momentum and as much dampening, mirrored at every second step."""
    method = Small(areas=[0.2], steps=6, weight=3.0, growth=1.1, relative=relative)
    mask, pyramid = _Mask(images, 4, 6.0), _pyramid(images, 8, 4.0, "constant")
    g = torch.ones(2, 2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([g], lr=0.01, momentum=0.9, dampening=0.9)
    ref = torch.zeros(64, dtype=torch.float64)
    ref[int(64 * 0.8) :] = 1
    levels = torch.stack([network(x)[:, 1].detach() for x in pyramid.unbind(1)])
    unit = (levels.max(0).values - levels.min(0).values) / 100 if relative else torch.ones(2)
    for t in range(6):
        m = mask(g)
        x = _blurred(pyramid, m)
        y = network(x.flip(3) if t % 2 == 0 else x)[:, 1]
        loss = -y / unit + 3 * 1.1**t * (m.flatten(1).sort(1).values - ref).square().mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        g.data.clamp_(0, 1)
    assert_close(method(network, images, 1), mask(g).detach())


def test_extremal_mask_of_constant_model_has_its_area(function):
    """The model is constant: the mask takes its area and no more."""
    net = function(lambda x: 0 * x.flatten(1)[:, :3])
    for area in (0.2, 0.5):
        m = Small(areas=[area], steps=250)(net, torch.randn(1, 1, 24, 24), 1)
        assert 0 <= m.min() < 0.05
        assert 0.95 < m.max() <= 1
        assert abs(m.mean() - area) < 0.05


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_extremal_mask_covers_the_cause_of_the_score(variant, function):
    """y is the contrast in one corner, which blur takes away where no zeros around the image add some."""
    x = torch.zeros(1, 1, 24, 24)
    x[..., ::2] = 1.0
    net = function(lambda x: 60 * (x[:, 0, :8, :8] - x[:, 0, :8, :8].mean()).square().mean((1, 2))[:, None])
    method = Small(areas=[0.15], steps=150, variant=variant, mirror=False, borders="replicate")
    m = method(net, x, 1)[0]
    assert m[:8, :8].mean() > 0.7
    assert m[14:, 14:].mean() < 0.01


def test_extremal_contrastive_subtracts_best_other_logit(function, images):
    """y[0] = y[1]: their difference is constant, whatever y[0] wants."""
    net = function(lambda x: x.flatten(1).mean(1, keepdim=True).expand(-1, 2) * 100)
    constant = function(lambda x: x.flatten(1)[:, :2] * 0)
    method = Small(steps=4, contrastive=True)
    assert_close(method(net, images, 0), method(constant, images, 0))
    with pytest.raises(TypeError, match="callable"):
        method(net, images, lambda output: output[:, 0])


def test_extremal_areas_add_up(network, images):
    both = Small(areas=[0.1, 0.4], steps=3)(network, images, 1)
    assert_close(
        both, Small(areas=[0.1], steps=3)(network, images, 1) + Small(areas=[0.4], steps=3)(network, images, 1)
    )


def test_extremal_costs_one_pass_per_step_and_level(network, images):
    passes = Tally()
    network.register_forward_hook(lambda m, args, out: passes.append(len(out)))
    Small(areas=[0.1, 0.3], steps=5)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * (5 + 8)  # and the levels of blur
    passes.clear()
    Small(areas=[0.1, 0.3], steps=5, relative=False)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * 5


def test_extremal_masks_of_signals_and_volumes(case):
    net, x = case
    m = Small(steps=2)(net, x, 1)
    assert m.shape == x[:, 0].shape
    assert ((m >= 0) & (m <= 1)).all()


WRONG = [{"areas": []}, {"areas": [1.0]}, {"levels": 1}, {"step": 0}, {"step": 4.0}, {"sigma": 0.0}]


@pytest.mark.parametrize("wrong", [*WRONG, {"blur_sigma": -1.0}])
def test_extremal_refuses_wrong_options(wrong, network, images):
    with pytest.raises(ValueError, match=r"expected (areas|levels|step|sigma|blur_sigma) "):
        Small(**{"steps": 1, **wrong})(network, images, 1)


def test_extremal_refuses_an_area_that_is_no_sequence():
    with pytest.raises(
        TypeError, match=r"expected areas of ExtremalPerturbation as a sequence of a finite number, got 0.1"
    ):
        Small(areas=0.1)


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
def test_extremal_ignores_unit_and_zero_of_score(variant, contrastive, network, images):
    method = Small(steps=8, variant=variant, contrastive=contrastive)
    scaled = nn.Sequential(network, nn.Linear(3, 3).double())
    with torch.no_grad():
        scaled[1].weight.copy_(1000 * torch.eye(3))
        scaled[1].bias.fill_(-7.0)
    assert_close(method(scaled, images, 1), method(network, images, 1))


@pytest.mark.parametrize(("gain", "top", "left"), [(1e-3, 6, 6), (1e3, 6, 6), (1.0, 0, 12)])
def test_extremal_mask_covers_cause_of_any_scale(gain, top, left, function, pattern):
    """At the default weight of the area, which reaches that of 800 steps in 150."""
    method = Small(areas=[0.25], steps=150, growth=1.0187, step=2, sigma=3.0, mirror=False)
    m = method(function(contrast(gain, top, left)), pattern, 1)[0]
    assert m[top : top + 12, left : left + 12].sum() / m.sum() > 0.7
    assert abs(m.mean() - 0.25) < 0.05


def test_extremal_relative_false_ignores_small_score(function, pattern):
    """The area decides alone: the masks of squares at opposite corners are the same, of the same area."""
    method = Small(areas=[0.25], steps=60, growth=1.04, step=2, sigma=3.0, mirror=False, relative=False)
    first, last = (method(function(contrast(1e-7, at, at)), pattern, 1) for at in (0, 12))
    assert_close(first, last, rtol=0, atol=0.02)
    assert abs(first.mean() - 0.25) < 0.05


@pytest.mark.parametrize("size", [(64,), (23, 30), (9, 10, 11)])
@pytest.mark.parametrize(("step", "sigma"), [(4, 6.0), (7, 21.0), (1, 0.5)])
def test_extremal_mask_of_ones_hides_nothing(size, step, sigma):
    """No border and no place between cells is brighter than another one: the area has nothing to prefer."""
    mask = _Mask(torch.zeros(1, 1, *size), step, sigma)
    assert torch.equal(mask(torch.ones(2, *mask.grid)), torch.ones(2, *size))
    values = mask(torch.rand(8, *mask.grid, generator=torch.Generator().manual_seed(0)))
    assert values.min() >= 0
    assert values.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extremal_mask_has_slope_at_its_bounds(value):
    """Pixels that are completely hidden or shown have a slope, so that the score can bring it back."""
    mask = _Mask(torch.zeros(1, 1, 12, 12, dtype=torch.float64), 4, 6.0)
    g = torch.full((1, 3, 3), value, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mask(g).sum(), g)
    assert (slope > 0).all()
    inner = 1e-6 if value == 0 else 1 - 1e-6
    moved = mask(torch.full((1, 3, 3), inner, dtype=torch.float64)) - mask(g.detach())
    assert_close(slope.sum(), moved.sum() / (inner - value), rtol=1e-3, atol=0)


def test_extremal_blur_of_nan_mask_stays_at_its_pixel():
    x = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    m = torch.full((2, 6, 6), 0.4, dtype=torch.float64)
    m[1, 2, 3] = torch.nan
    seen = _blurred(_pyramid(x, 4, 2.0, "replicate"), m)
    assert_close(seen[0], x[0])
    assert seen.isnan().nonzero().tolist() == [[1, 0, 2, 3]]


@pytest.mark.parametrize("score", ["prob", "logprob", "logit"])
def test_extremal_contrastive_follows_explained_score(score, function, images):
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
