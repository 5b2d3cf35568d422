"""Expected Grad-CAM by its formula, its options, and the family of expected methods where options meet."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from support.attributions import BASELINES, ToyViT, toy, toy_images
from support.expected_methods import every_expected_method, expected_methods, paths
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    Baselines,
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    ExpectedGradients,
    GradCAM,
    GuidedExpectedGradCAM,
    HyperExpectedGradCAM,
    cache_baselines,
    explain,
    normalize,
    sample_baselines,
)
from interpretable_training.attribution.expected_grad_cam import draw_paths

close = partial(assert_close, rtol=0, atol=1e-9)
Raw = partial(ExpectedGradCAM, relu=False, upsample=False)


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
@pytest.mark.parametrize("batches", [1, 3])
def test_expected_grad_cam_equals_printed_mean(difference, batches, network, images, baselines, activations):
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


def test_expected_grad_cam_rectifies_each_mini_batch(network, images, baselines):
    alone = [Raw("0", baselines=baselines, n=2, draws=[i], alpha="linspace")(network, images, 1) for i in range(3)]
    cam = Raw("0", baselines=baselines, n=2, batches=3, draws=[0, 1, 2], alpha="linspace", one_baseline_per_batch=True)
    close(cam(network, images, 1), torch.stack(alone).mean(0))
    rectified = replace(cam, relu=True)(network, images, 1)
    close(rectified, torch.stack(alone).relu().mean(0))


@pytest.mark.parametrize("difference", ["layer_diff", "tangent"])
def test_expected_grad_cam_closed_form_for_linear_head(difference, gap_linear, W, features, target):
    """Features are the image: w[k] = W[c, k] / Z (mean A[k] - mean of the baselines' means), whatever a."""
    base = torch.rand(3, 4, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cam = Raw("features", baselines=base, n=6, draws="sequential", difference=difference)
    w = W[target] / 6 * (features.mean((2, 3)) - base.mean((0, 2, 3)))
    close(cam(gap_linear(W), features, target), torch.einsum("bk,bkij->bij", w, features))


def test_expected_grad_cam_is_zero_if_baseline_is_image(network, images):
    for difference in ("layer_diff", "tangent"):
        assert not Raw("0", baselines=images[:1], difference=difference, n=3)(network, images[:1], 1).any()
    assert Raw("0", baselines=images[:1], difference="encode_diff", n=3)(network, images[:1], 1).any()


def test_expected_grad_cam_of_black_baseline_without_biases(activations):
    """A(0) = 0 and gradients are those of the image along the whole path: w = mean of G A."""
    net = nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU()), nn.Flatten()).double()
    net = nn.Sequential(net[0], nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3, bias=False))).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    A, G = activations(net, x, [1, 1])
    expected = torch.einsum("bk,bkij->bij", (G * A).mean((2, 3)), A)
    close(Raw("0", baselines=torch.zeros(1, 2, 8, 8), n=1)(net, x, 1), expected)


def test_expected_grad_cam_only_tangent_is_complete(network, images, baselines):
    deltas = {}
    for difference in ("layer_diff", "encode_diff", "tangent"):
        cam = Raw("0", baselines=baselines, n=500, draws=[0], alpha="linspace", difference=difference)
        deltas[difference] = cam.convergence(network, images, 1).delta.abs().max()
    assert deltas["tangent"] < 2e-3
    assert min(deltas["layer_diff"], deltas["encode_diff"]) > 10 * deltas["tangent"]


def test_expected_grad_cam_at_input_is_expected_gradients(function, images, baselines):
    """At the image w (x - x') is that of expected gradients with the same draws."""
    net = nn.Sequential(nn.Identity(), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3)).double()
    phi = ExpectedGradients(baselines, n=7, reduce="none")(net, images, 1)
    expected = torch.einsum("bk,bkij->bij", phi.mean((2, 3)), images)
    close(Raw("0", baselines=baselines, n=7)(net, images, 1), expected)


def test_expected_grad_cam_draws_follow_options_and_seed(baselines):
    cam = ExpectedGradCAM(baselines=baselines, n=3, batches=2)
    assert draw_paths(replace(cam, draws="sequential"))[0].tolist() == [0, 1, 2, 3, 4, 0]
    assert draw_paths(replace(cam, draws=[4, 2]))[0].tolist() == [4, 2, 4, 2, 4, 2]
    assert draw_paths(replace(cam, draws=[4, 2], one_baseline_per_batch=True))[0].tolist() == [4, 4, 4, 2, 2, 2]
    assert draw_paths(replace(cam, alpha="linspace"))[1].tolist() == [0, 0.5, 1] * 2
    index, a = draw_paths(replace(cam, n=2000))
    assert (index.bincount(minlength=5) > 4000 / 5 * 0.8).all()
    assert 0 <= a.min() < 0.01 < 0.99 < a.max() < 1
    assert not torch.equal(draw_paths(replace(cam, seed=1))[1], draw_paths(cam)[1])


def test_expected_grad_cam_with_cached_or_stale_features(network, images, baselines):
    cached = cache_baselines(network, baselines, "0", chunk_size=2)
    cam = Raw("0", baselines=baselines, n=7)
    assert torch.equal(replace(cam, baselines=cached)(network, images, 1), cam(network, images, 1))
    network[0][0].weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="make them again with cache_baselines"):
        replace(cam, baselines=cached)(network, images, 1)
    with pytest.raises(ValueError, match=r"kept features of layer '1.0', got those of \['0'\]"):
        Raw("1.0", baselines=cached)(network, images, 1)


def test_cached_baselines_hold_the_chosen_layers(network, baselines):
    assert list(cache_baselines(network, baselines).features) == ["1.1"]
    assert cache_baselines(network, baselines, ["0", "1.0"]).features["1.0"].shape == (5, 3, 4, 4)


def test_expected_grad_cam_counts_forward_passes(network, images, baselines):
    """Draws, the image and the baselines that were drawn; with kept features one pass of one baseline."""
    passes = Tally()
    network.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    cam = Raw("0", baselines=baselines, n=50, draws="sequential")
    cam(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 50 + 2 + 5
    cached = cache_baselines(network, baselines, "0")
    passes.clear()
    replace(cam, baselines=cached)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 50 + 2 + 1
    assert sum(passes) <= 1.15 * 2 * 50
    passes.clear()
    replace(cam, difference="tangent")(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 2 * 50 + 2


def test_expected_grad_cam_tangent_refuses_no_forward_mode(function, images, baselines):
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


def test_expected_grad_cam_convergence_of_linear_model(linear, images, baselines):
    """All gradients are w: their sum grows by |sum w| with each draw, their mean does not move; nothing is missing."""
    w = torch.randn(1, 128, dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), linear(w))
    report = ExpectedGradCAM("0", baselines=baselines, n=8).convergence(net, images)
    close(report.difference, w.sum().abs() * torch.arange(1, 9).double().expand(2, 8))
    close(report.change, torch.tensor([1.0] + [0.0] * 7).double().expand(2, 8))
    assert report.settled.tolist() == [6, 6]
    close(report.delta, torch.zeros(2, dtype=torch.float64))
    few = ExpectedGradCAM("0", baselines=baselines, n=5).convergence(net, images)
    assert few.settled.tolist() == [-1, -1]


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_expected_grad_cam_of_signals_and_volumes(difference, case):
    net, x = case
    S = ExpectedGradCAM(baselines=torch.randn(3, *x.shape[1:]), n=3, difference=difference)(net, x, 1)
    assert S.shape == x[:, 0].shape


def test_sample_baselines_draws_without_replacement():
    data = [torch.full((1, 2, 2), float(i)) for i in range(10)]
    sample = sample_baselines(data, 10)
    assert sorted(sample[:, 0, 0, 0].tolist()) == list(range(10))
    assert sample[:, 0, 0, 0].tolist() != list(range(10))
    assert torch.equal(sample_baselines([(x, 1) for x in data], 4), sample[:4])
    assert torch.equal(sample_baselines([{"image": x} for x in data], 4), sample[:4])
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
def test_expected_grad_cam_refuses_wrong_options(wrong, match, network, images, baselines):
    with pytest.raises(ValueError, match=match):
        ExpectedGradCAM("0", **{"baselines": baselines, **wrong})(network, images, 1)


@pytest.fixture
def base():
    return torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Affine(nn.Module):
    """Features that are affine in the image, below a head that is not."""

    def __init__(self, bias):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(2, 4, 3, 2, 1, bias=bias)
            self.head = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
        self.double()

    def forward(self, x):
        return self.head(self.conv(x))


def test_expected_grad_cam_differences_agree_for_linear_features(images, base):
    cams = [
        ExpectedGradCAM("conv", baselines=base, n=6, difference=d) for d in ("layer_diff", "encode_diff", "tangent")
    ]
    one, *others = (cam(Affine(bias=False), images, 1) for cam in cams)
    assert one.any()
    for other in others:
        assert_close(other, one)


def test_expected_grad_cam_encode_diff_differs_by_bias(images, base):
    """A(x - x') = A(x) - A(x') + b: each weight is larger by b times the mean gradient."""
    net = Affine(bias=True)
    cams = {
        d: ExpectedGradCAM("conv", baselines=base, n=6, difference=d, relu=False, upsample=False)
        for d in ("layer_diff", "encode_diff", "tangent")
    }
    S = {name: cam(net, images, 1) for name, cam in cams.items()}
    assert_close(S["tangent"], S["layer_diff"])
    index, a = draw_paths(cams["tangent"])
    A, more = net.conv(images).detach(), 0
    for i, share in zip(index.tolist(), a):
        at = net.conv(base[i] + share * (images - base[i])).detach().requires_grad_()
        g = torch.autograd.grad(net.head(at)[:, 1].sum(), at)[0]
        more = more + g.mean((2, 3)) * net.conv.bias.detach() / 6
    assert_close(S["encode_diff"] - S["layer_diff"], torch.einsum("bk,bkij->bij", more, A))


@pytest.mark.parametrize("one", [False, True])
def test_expected_grad_cam_convergence_equals_loops(one, network, images, base):
    cam = ExpectedGradCAM("0", baselines=base, n=6, batches=2, difference="tangent", one_baseline_per_batch=one)
    report = cam.convergence(network, images, torch.tensor([0, 2]), tolerance=0.6)
    index, a = draw_paths(cam)
    for b, c in enumerate((0, 2)):
        grads, phi, ends = [], 0.0, []
        for i, share in zip(index.tolist(), a):
            x = base[i] + share * (images[b] - base[i])
            A = network[0](x[None]).detach().requires_grad_()
            g = torch.autograd.grad(network[1](A)[0, c], A)[0]
            step = 1e-6 * (images[b] - base[i])
            D = (network[0]((x + step)[None]) - network[0]((x - step)[None])).detach() / 2e-6
            grads.append(g)
            phi += float((g * D).sum()) / 12
            ends.append(float(network(base[i : i + 1])[0, c].detach()))
        quiet = 0
        settled = -1
        for s in range(1, 13):
            mean, old = sum(grads[:s]) / s, sum(grads[: s - 1]) / max(s - 1, 1) if s > 1 else 0 * grads[0]
            change = float((mean - old).norm() / mean.norm())
            assert report.difference[b, s - 1] == pytest.approx(abs(float(sum(grads[:s]).sum())))
            assert report.change[b, s - 1] == pytest.approx(change)
            quiet = quiet + 1 if change < 0.6 else 0
            settled = s if quiet == 5 and settled < 0 else settled
        assert settled == report.settled[b] > 0
        rise = float(network(images[b : b + 1])[0, c].detach()) - sum(ends) / 12
        assert report.delta[b] == pytest.approx(phi - rise, abs=1e-6)


def test_expected_stages_refuse_several_classes():
    cam = ExpectedGradCAM(baselines=BASELINES, n=2)
    for look in (cam.convergence, HyperExpectedGradCAM(cam).stages):
        for target in ("topk:2", torch.zeros(2, 3, dtype=torch.long)):
            with pytest.raises(ValueError, match=r"expected one target per image, got \(2, [23]\)"):
                look(toy(), toy_images(2), target)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_guided_expected_grad_cam_uses_all_mini_batches(batches, network, images, base):
    """Expected gradients with as many draws as all mini-batches together have the same draws."""
    cam = ExpectedGradCAM("0", baselines=base, n=4, batches=batches)
    phi = ExpectedGradients(base, n=4 * batches, reduce="signed_sum")(network, images, 1)
    H = GuidedExpectedGradCAM(cam, reduce="signed_sum")(network, images, 1)
    assert_close(H, normalize(cam(network, images, 1)) * phi)


def test_expected_methods_together_equal_alone():
    methods = {**expected_methods(BASELINES), "gradcam": GradCAM()}
    together = explain(methods, toy(), toy_images(2), [1, 3])
    for name, method in methods.items():
        assert torch.equal(together[name], method(toy(), toy_images(2), [1, 3]))


@every_expected_method
def test_expected_methods_of_wrapped_and_compiled_models(name):
    net, images, method = toy(), toy_images(1), expected_methods(BASELINES, difference="tangent")[name]
    expected = method(net, images, 1)
    inside = toy()
    inside.block = torch.compile(inside.block, backend="eager")
    for model in (nn.DataParallel(net), torch.compile(net, backend="eager"), inside):
        assert_close(method(model, images, 1), expected)


@every_expected_method
@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_expected_methods_refuse_patch_tokens_that_are_not_read(name, difference):
    torch.manual_seed(0)
    net, images = ToyViT().eval(), toy_images(1)
    assert expected_methods(BASELINES, layer="blocks.0", difference=difference)[name](net, images, 1).any()
    with pytest.raises(ValueError, match="only its 1 prefix tokens are read"):
        expected_methods(BASELINES, layer="blocks.1", difference=difference)[name](net, images, 1)


def test_guided_expected_grad_cam_refuses_layer_behind_no_grad():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = toy().stem, toy().block

        def forward(self, x):
            with torch.no_grad():
                x = self.stem(x)
            return self.block(x).mean((2, 3))

    net, cam = Frozen().eval(), ExpectedGradCAM("block", baselines=BASELINES, n=2)
    assert cam(net, toy_images(1), 1).any()
    with pytest.raises(RuntimeError, match="turns them off"):
        GuidedExpectedGradCAM(cam)(net, toy_images(1), 1)


def test_guided_and_hyper_expected_grad_cam_refuse_other_cams():
    plus = ExpectedGradCAMPlusPlus(baselines=BASELINES, n=2)
    with pytest.raises(
        TypeError, match="expected cam of GuidedExpectedGradCAM as ExpectedGradCAM, got ExpectedGradCAMPlusPlus"
    ):
        GuidedExpectedGradCAM(plus)(toy(), toy_images(1))
    with pytest.raises(TypeError, match="got GradCAM"):
        GuidedExpectedGradCAM(GradCAM())(toy(), toy_images(1))
    with pytest.raises(TypeError, match="got GradCAM"):
        HyperExpectedGradCAM(GradCAM())
    assert HyperExpectedGradCAM(plus, local_draws=1)(toy(), toy_images(1), 1).any()


@pytest.mark.parametrize("draws", [[0.5], [True, False], ["a"], [[0, 1]], None, 3])
def test_expected_grad_cam_refuses_draws_that_are_no_indices(draws):
    with pytest.raises(TypeError, match=r"expected draws of ExpectedGradCAM as one of \('iid', 'sequential'\) or"):
        ExpectedGradCAM(baselines=BASELINES, n=2, draws=draws)


@pytest.mark.parametrize("draws", [[], [-1], [4], (0, 9)])
def test_expected_grad_cam_refuses_draws_without_baseline(draws):
    cam = ExpectedGradCAM(baselines=BASELINES, n=2, draws=draws)
    with pytest.raises(ValueError, match="'sequential' or indices from 0 to 3"):
        cam(toy(), toy_images(1), 1)


def test_expected_grad_cam_accepts_any_sequence_of_draws():
    cam = ExpectedGradCAM(baselines=BASELINES, n=4, draws=[1, 2])
    expected = cam(toy(), toy_images(1), 1)
    for draws in ((1, 2), range(1, 3), torch.tensor([1, 2]), torch.tensor([1, 2]).numpy(), [1, 2, 1, 2, 0]):
        assert torch.equal(replace(cam, draws=draws)(toy(), toy_images(1), 1), expected)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1.5}, {"batches": -1}, {"batches": 2.0}])
def test_expected_grad_cam_refuses_wrong_numbers_of_draws(wrong):
    with pytest.raises(ValueError, match=r"expected (n|batches) as a whole number of at least 1"):
        ExpectedGradCAM(baselines=BASELINES, **wrong)


def test_expected_grad_cam_uses_only_listed_baselines():
    other = BASELINES.clone()
    other[[0, 3]] = 1e6  # any use of them shows
    a, b = (ExpectedGradCAM(baselines=t, n=4, draws=[1, 2])(toy(), toy_images(1), 1) for t in (BASELINES, other))
    assert a.any()
    assert torch.equal(a, b)
