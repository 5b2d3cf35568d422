import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tally import Tally
from torch.testing import assert_close

from interpretable_training.attribution import ExtremalPerturbation
from interpretable_training.attribution.core.map_operations import blur
from interpretable_training.attribution.extremal_perturbation import _blurred, _Mask, _pyramid

Small = partial(ExtremalPerturbation, step=4, sigma=6.0, blur_sigma=4.0)


@pytest.mark.parametrize("size", [(11, 14), (17,)])
def test_a_mask_is_the_smooth_maximum_over_cells(size):
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


def test_masks_of_one_and_zero_keep_and_hide_the_image():
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    pyramid = _pyramid(x, 5, 4.0, "replicate")
    assert_close(_blurred(pyramid, torch.ones(2, 12, 12).double()), x)
    hidden = blur(x, 33, 4.0)
    assert_close(_blurred(pyramid, torch.zeros(2, 12, 12).double()), hidden)
    between = _blurred(pyramid, torch.full((2, 12, 12), 0.3).double())  # 0.2 of the way from level 1 to level 2
    assert_close(between, 0.8 * blur(x, 25, 3.0) + 0.2 * blur(x, 17, 2.0))


def test_published_blur_meets_zeros_around_the_image():
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
def test_blur_borders_reach_the_mask(borders, function):
    """The score is what blur leaves in a corner of an image of ones: zeros around it are the only slope there is."""
    net = function(lambda x: 100 * x[:, 0, :4, :4].mean((1, 2))[:, None])
    S = Small(areas=[0.1], steps=40, borders=borders)(net, torch.ones(1, 1, 24, 24), 1)[0]
    corner, opposite = S[:4, :4].mean(), S[-4:, -4:].mean()
    assert (corner > opposite + 0.2) == (borders == "constant")


@pytest.mark.parametrize("relative", [True, False])
def test_the_ascent_is_that_of_torch(relative, network, images):
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


def test_without_a_preference_only_the_area_counts(function):
    """The model is constant: the mask takes its area and no more."""
    net = function(lambda x: 0 * x.flatten(1)[:, :3])
    for area in (0.2, 0.5):
        m = Small(areas=[area], steps=250)(net, torch.randn(1, 1, 24, 24), 1)
        assert 0 <= m.min() < 0.05
        assert 0.95 < m.max() <= 1
        assert abs(m.mean() - area) < 0.05


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_the_mask_finds_what_the_score_is_made_of(variant, function):
    """y is the contrast in one corner, which blur takes away where no zeros around the image add some."""
    x = torch.zeros(1, 1, 24, 24)
    x[..., ::2] = 1.0
    net = function(lambda x: 60 * (x[:, 0, :8, :8] - x[:, 0, :8, :8].mean()).square().mean((1, 2))[:, None])
    method = Small(areas=[0.15], steps=150, variant=variant, mirror=False, borders="replicate")
    m = method(net, x, 1)[0]
    assert m[:8, :8].mean() > 0.7
    assert m[14:, 14:].mean() < 0.01


def test_contrast_subtracts_the_best_other_logit(function, images):
    """y[0] = y[1]: their difference is constant, whatever y[0] wants."""
    net = function(lambda x: x.flatten(1).mean(1, keepdim=True).expand(-1, 2) * 100)
    constant = function(lambda x: x.flatten(1)[:, :2] * 0)
    method = Small(steps=4, contrastive=True)
    assert_close(method(net, images, 0), method(constant, images, 0))
    with pytest.raises(TypeError, match="callable"):
        method(net, images, lambda output: output[:, 0])


def test_several_areas_add_up(network, images):
    both = Small(areas=[0.1, 0.4], steps=3)(network, images, 1)
    assert_close(
        both, Small(areas=[0.1], steps=3)(network, images, 1) + Small(areas=[0.4], steps=3)(network, images, 1)
    )


def test_cost(network, images):
    passes = Tally()
    network.register_forward_hook(lambda m, args, out: passes.append(len(out)))
    Small(areas=[0.1, 0.3], steps=5)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * (5 + 8)  # and the levels of blur
    passes.clear()
    Small(areas=[0.1, 0.3], steps=5, relative=False)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * 5


def test_signals(case):
    net, x = case
    m = Small(steps=2)(net, x, 1)
    assert m.shape == x[:, 0].shape
    assert ((m >= 0) & (m <= 1)).all()


WRONG = [{"areas": []}, {"areas": [1.0]}, {"areas": 0.1}, {"levels": 1}, {"step": 0}, {"step": 4.0}, {"sigma": 0.0}]


@pytest.mark.parametrize("wrong", [*WRONG, {"blur_sigma": -1.0}])
def test_other_options_are_refused(wrong, network, images):
    with pytest.raises(ValueError, match=r"expected (areas|levels|step|sigma|blur_sigma) "):
        Small(**{"steps": 1, **wrong})(network, images, 1)
