from dataclasses import replace
from functools import partial

import pytest
import torch
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    Baselines,
    ExpectedGradCAM,
    ExpectedGradients,
    cache_baselines,
    sample_baselines,
)
from interpretable_training.attribution.expected_grad_cam import draw_paths

close = partial(assert_close, rtol=0, atol=1e-9)
Raw = partial(ExpectedGradCAM, relu=False, upsample=False)


@pytest.fixture
def baselines():
    return torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def paths(cam, images):
    """x[s] and x'[s] of every draw for one image after the other, (S, B, C, ...)."""
    index, a = draw_paths(cam)
    base = cam.baselines[index][:, None].expand(-1, *images.shape)
    return base + a.reshape(-1, *[1] * images.ndim) * (images - base), base


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
@pytest.mark.parametrize("batches", [1, 3])
def test_it_is_the_printed_mean(difference, batches, network, images, baselines, activations):
    """One draw, image and batch after the other, with the Jacobian of the features by finite differences."""
    cam = Raw("0", baselines=baselines, n=4, batches=batches, difference=difference, seed=3)
    x, base = paths(cam, images)
    target, A = torch.tensor([2, 1]), network[0](images).detach()
    expected = torch.zeros(2, 4, 4, dtype=torch.float64)
    for b in range(batches):
        w = torch.zeros(2, 4, dtype=torch.float64)
        for s in range(4 * b, 4 * b + 4):
            _, G = activations(network, x[s], target)
            D = A - network[0](base[s]).detach()
            if difference == "encode_diff":
                D = network[0](images - base[s]).detach()
            if difference == "tangent":
                step = 1e-7 * (images - base[s])
                D = ((network[0](x[s] + step) - network[0](x[s] - step)) / 2e-7).detach()
            w += (G * D).sum((2, 3)) / 16 / 4
        expected += torch.einsum("bk,bkij->bij", w, A) / batches
    for chunk_size in (1, 5, 100):
        S = replace(cam, chunk_size=chunk_size)(network, images, target)
        assert_close(S, expected, rtol=1e-6, atol=1e-8)


def test_the_relu_comes_before_the_mean_over_mini_batches(network, images, baselines):
    alone = [Raw("0", baselines=baselines, n=2, draws=[i], alpha="linspace")(network, images, 1) for i in range(3)]
    cam = Raw("0", baselines=baselines, n=2, batches=3, draws=[0, 1, 2], alpha="linspace", one_baseline_per_batch=True)
    close(cam(network, images, 1), torch.stack(alone).mean(0))
    rectified = replace(cam, relu=True)(network, images, 1)
    close(rectified, torch.stack(alone).relu().mean(0))


@pytest.mark.parametrize("difference", ["layer_diff", "tangent"])
def test_pooling_and_a_linear_layer_give_the_distance_to_the_mean_baseline(difference, gap_linear, W, features, target):
    """Features are the image: w[k] = W[c, k] / Z (mean A[k] - mean of the baselines' means), whatever a."""
    base = torch.rand(3, 4, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cam = Raw("features", baselines=base, n=6, draws="sequential", difference=difference)
    w = W[target] / 6 * (features.mean((2, 3)) - base.mean((0, 2, 3)))
    close(cam(gap_linear(W), features, target), torch.einsum("bk,bkij->bij", w, features))


def test_a_baseline_that_is_the_image_gives_zero(network, images):
    for difference in ("layer_diff", "tangent"):
        assert not Raw("0", baselines=images[:1], difference=difference, n=3)(network, images[:1], 1).any()
    assert Raw("0", baselines=images[:1], difference="encode_diff", n=3)(network, images[:1], 1).any()


def test_a_black_baseline_of_a_network_without_biases(activations):
    """A(0) = 0 and gradients are those of the image along the whole path: w = mean of G A."""
    net = nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU()), nn.Flatten()).double()
    net = nn.Sequential(net[0], nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3, bias=False))).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    A, G = activations(net, x, [1, 1])
    expected = torch.einsum("bk,bkij->bij", (G * A).mean((2, 3)), A)
    close(Raw("0", baselines=torch.zeros(1, 2, 8, 8), n=1)(net, x, 1), expected)


def test_only_the_tangent_is_complete(network, images, baselines):
    found = {}
    for difference in ("layer_diff", "encode_diff", "tangent"):
        cam = Raw("0", baselines=baselines, n=500, draws=[0], alpha="linspace", difference=difference)
        found[difference] = cam.convergence(network, images, 1).delta.abs().max()
    assert found["tangent"] < 2e-3
    assert min(found["layer_diff"], found["encode_diff"]) > 10 * found["tangent"]


def test_the_network_itself_as_layer_gives_expected_gradients(function, images, baselines):
    """At the image w (x - x') is that of expected gradients with the same draws."""
    net = nn.Sequential(nn.Identity(), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3)).double()
    phi = ExpectedGradients(baselines, n=7, reduce="none")(net, images, 1)
    expected = torch.einsum("bk,bkij->bij", phi.mean((2, 3)), images)
    close(Raw("0", baselines=baselines, n=7)(net, images, 1), expected)


def test_draws(baselines):
    cam = ExpectedGradCAM(baselines=baselines, n=3, batches=2)
    assert draw_paths(replace(cam, draws="sequential"))[0].tolist() == [0, 1, 2, 3, 4, 0]
    assert draw_paths(replace(cam, draws=[4, 2]))[0].tolist() == [4, 2, 4, 2, 4, 2]
    assert draw_paths(replace(cam, draws=[4, 2], one_baseline_per_batch=True))[0].tolist() == [4, 4, 4, 2, 2, 2]
    assert draw_paths(replace(cam, alpha="linspace"))[1].tolist() == [0, 0.5, 1] * 2
    index, a = draw_paths(replace(cam, n=2000))
    assert (index.bincount(minlength=5) > 4000 / 5 * 0.8).all()
    assert 0 <= a.min() < 0.01 < 0.99 < a.max() < 1
    assert not torch.equal(draw_paths(replace(cam, seed=1))[1], draw_paths(cam)[1])


def test_kept_features_give_the_same_map_and_those_of_other_weights_are_refused(network, images, baselines):
    kept = cache_baselines(network, baselines, "0", chunk_size=2)
    cam = Raw("0", baselines=baselines, n=7)
    assert torch.equal(replace(cam, baselines=kept)(network, images, 1), cam(network, images, 1))
    network[0][0].weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="make them again with cache_baselines"):
        replace(cam, baselines=kept)(network, images, 1)
    with pytest.raises(ValueError, match=r"kept features of layer '1.0', got those of \['0'\]"):
        Raw("1.0", baselines=kept)(network, images, 1)


def test_kept_features_of_the_chosen_layer(network, baselines):
    assert list(cache_baselines(network, baselines).features) == ["1.1"]
    assert cache_baselines(network, baselines, ["0", "1.0"]).features["1.0"].shape == (5, 3, 4, 4)


def test_cost(network, images, baselines):
    """Draws, the image and the baselines that were drawn; with kept features one pass of one baseline."""
    passes = Tally()
    network.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    cam = Raw("0", baselines=baselines, n=50, draws="sequential")
    cam(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 50 + 2 + 5
    kept = cache_baselines(network, baselines, "0")
    passes.clear()
    replace(cam, baselines=kept)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 50 + 2 + 1
    assert sum(passes) <= 1.15 * 2 * 50
    passes.clear()
    replace(cam, difference="tangent")(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * 50 + 2


def test_a_model_without_forward_mode_is_told(function, images, baselines):
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    conv = nn.Conv2d(2, 4, 3, 2, 1).double()
    net = function(lambda x, conv: Twice.apply(conv(x)).sum((2, 3)), conv=conv)
    cam = ExpectedGradCAM("conv", baselines=baselines, n=2, difference="tangent")
    assert cam(net, images, 1).any()  # what lies behind the layer does not matter
    below = function(lambda x, conv: conv(Twice.apply(x)).sum((2, 3)), conv=conv)
    assert replace(cam, difference="layer_diff")(below, images, 1).any()
    with pytest.raises(RuntimeError, match="pass difference='layer_diff'"):
        cam(below, images, 1)


def test_convergence_of_a_linear_model(linear, images, baselines):
    """All gradients are w: their sum grows by |sum w| with each draw, their mean does not move; nothing is missing."""
    w = torch.randn(1, 128, dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), linear(w))
    found = ExpectedGradCAM("0", baselines=baselines, n=8).convergence(net, images)
    close(found.difference, w.sum().abs() * torch.arange(1, 9).double().expand(2, 8))
    close(found.change, torch.tensor([1.0] + [0.0] * 7).double().expand(2, 8))
    assert found.settled.tolist() == [6, 6]
    close(found.delta, torch.zeros(2, dtype=torch.float64))
    few = ExpectedGradCAM("0", baselines=baselines, n=5).convergence(net, images)
    assert few.settled.tolist() == [-1, -1]


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_signals_and_volumes(difference, case):
    net, x = case
    S = ExpectedGradCAM(baselines=torch.randn(3, *x.shape[1:]), n=3, difference=difference)(net, x, 1)
    assert S.shape == x[:, 0].shape


def test_baselines_from_a_data_set():
    data = [torch.full((1, 2, 2), float(i)) for i in range(10)]
    found = sample_baselines(data, 10)
    assert sorted(found[:, 0, 0, 0].tolist()) == list(range(10))
    assert found[:, 0, 0, 0].tolist() != list(range(10))
    assert torch.equal(sample_baselines([(x, 1) for x in data], 4), found[:4])
    assert torch.equal(sample_baselines([{"image": x} for x in data], 4), found[:4])
    with pytest.raises(ValueError, match="from 1 to the 10 items"):
        sample_baselines(data, 11)
    with pytest.raises(TypeError, match="stack the images"):
        sample_baselines(["a", "b"], 1)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"baselines": torch.zeros(3, 1, 8, 8)}, r"\(N, \*\(2, 8, 8\)\) like the images, got \(3, 1, 8, 8\)"),
        ({"baselines": Baselines(torch.zeros(0, 2, 8, 8))}, r"got \(0, 2, 8, 8\)"),
        ({"n": 0}, "expected n as a whole number of at least 1 .* got 0"),
        ({"batches": 0}, "expected batches as a whole number of at least 1 .* got 0"),
        ({"draws": "all"}, "'all'"),
        ({"draws": [5]}, "indices from 0 to 4"),
        ({"difference": "none"}, "'none'"),
    ],
)
def test_other_options_are_refused(wrong, match, network, images, baselines):
    with pytest.raises(ValueError, match=match):
        ExpectedGradCAM("0", **{"baselines": baselines, **wrong})(network, images, 1)
