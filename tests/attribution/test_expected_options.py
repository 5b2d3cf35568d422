"""The Expected Grad-CAM family where options meet: readings, mini-batches, wrappers, convergence by loops."""

from dataclasses import replace

import pytest
import torch
from support.attributions import BASELINES, ToyViT, toy, toy_images
from test_expected_baselines import every, family
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    ExpectedGradients,
    GradCAM,
    GuidedExpectedGradCAM,
    HyperExpectedGradCAM,
    explain,
    normalize,
)
from interpretable_training.attribution.expected_grad_cam import draw_paths


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


def test_where_features_are_linear_the_three_readings_are_one(images, base):
    cams = [
        ExpectedGradCAM("conv", baselines=base, n=6, difference=d) for d in ("layer_diff", "encode_diff", "tangent")
    ]
    one, *others = (cam(Affine(bias=False), images, 1) for cam in cams)
    assert one.any()
    for other in others:
        assert_close(other, one)


def test_with_a_bias_only_the_encoded_difference_is_another_one(images, base):
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
def test_convergence_is_what_loops_find(one, network, images, base):
    cam = ExpectedGradCAM("0", baselines=base, n=6, batches=2, difference="tangent", one_baseline_per_batch=one)
    found = cam.convergence(network, images, torch.tensor([0, 2]), tolerance=0.6)
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
            assert found.difference[b, s - 1] == pytest.approx(abs(float(sum(grads[:s]).sum())))
            assert found.change[b, s - 1] == pytest.approx(change)
            quiet = quiet + 1 if change < 0.6 else 0
            settled = s if quiet == 5 and settled < 0 else settled
        assert settled == found.settled[b] > 0
        rise = float(network(images[b : b + 1])[0, c].detach()) - sum(ends) / 12
        assert found.delta[b] == pytest.approx(phi - rise, abs=1e-6)


def test_several_classes_have_no_place_where_stages_are_looked_at():
    cam = ExpectedGradCAM(baselines=BASELINES, n=2)
    for look in (cam.convergence, HyperExpectedGradCAM(cam).stages):
        for target in ("topk:2", torch.zeros(2, 3, dtype=torch.long)):
            with pytest.raises(ValueError, match=r"expected one target per image, got \(2, [23]\)"):
                look(toy(), toy_images(2), target)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_the_guided_one_multiplies_with_expected_gradients_of_all_mini_batches(batches, network, images, base):
    """Expected gradients with as many draws as all mini-batches together have the same draws."""
    cam = ExpectedGradCAM("0", baselines=base, n=4, batches=batches)
    phi = ExpectedGradients(base, n=4 * batches, reduce="signed_sum")(network, images, 1)
    H = GuidedExpectedGradCAM(cam, reduce="signed_sum")(network, images, 1)
    assert_close(H, normalize(cam(network, images, 1)) * phi)


def test_methods_explained_together_get_the_maps_that_they_get_alone():
    methods = {**family(BASELINES), "gradcam": GradCAM()}
    together = explain(methods, toy(), toy_images(2), [1, 3])
    for name, method in methods.items():
        assert torch.equal(together[name], method(toy(), toy_images(2), [1, 3]))


@every
def test_wrapped_and_compiled_models_get_the_map_of_the_module(name):
    net, images, method = toy(), toy_images(1), family(BASELINES, difference="tangent")[name]
    expected = method(net, images, 1)
    inside = toy()
    inside.block = torch.compile(inside.block, backend="eager")
    for model in (nn.DataParallel(net), torch.compile(net, backend="eager"), inside):
        assert_close(method(model, images, 1), expected)


@every
@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_tokens_behind_which_only_the_class_token_is_read_are_refused(name, difference):
    torch.manual_seed(0)
    net, images = ToyViT().eval(), toy_images(1)
    assert family(BASELINES, layer="blocks.0", difference=difference)[name](net, images, 1).any()
    with pytest.raises(ValueError, match="only its 1 prefix tokens are read"):
        family(BASELINES, layer="blocks.1", difference=difference)[name](net, images, 1)


def test_a_layer_that_no_gradient_leads_to_from_the_image_is_refused_by_the_guided_one():
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


def test_other_cams_are_refused():
    plus = ExpectedGradCAMPlusPlus(baselines=BASELINES, n=2)
    with pytest.raises(TypeError, match="expected an ExpectedGradCAM as cam, got ExpectedGradCAMPlusPlus"):
        GuidedExpectedGradCAM(plus)(toy(), toy_images(1))
    with pytest.raises(TypeError, match="got GradCAM"):
        GuidedExpectedGradCAM(GradCAM())(toy(), toy_images(1))
    with pytest.raises(TypeError, match="got GradCAM"):
        HyperExpectedGradCAM(GradCAM())
    assert HyperExpectedGradCAM(plus, local_draws=1)(toy(), toy_images(1), 1).any()


@pytest.mark.parametrize("draws", [[0.5], [True, False], ["a"], [[0, 1]], [], [-1], [4], None, 3, (0, 9)])
def test_draws_that_name_no_baselines_are_refused(draws):
    cam = ExpectedGradCAM(baselines=BASELINES, n=2, draws=draws)
    with pytest.raises(ValueError, match="'sequential' or indices from 0 to 3"):
        cam(toy(), toy_images(1), 1)


def test_indices_may_come_as_any_sequence():
    cam = ExpectedGradCAM(baselines=BASELINES, n=4, draws=[1, 2])
    expected = cam(toy(), toy_images(1), 1)
    for draws in ((1, 2), range(1, 3), torch.tensor([1, 2]), torch.tensor([1, 2]).numpy(), [1, 2, 1, 2, 0]):
        assert torch.equal(replace(cam, draws=draws)(toy(), toy_images(1), 1), expected)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1.5}, {"batches": -1}, {"batches": 2.0}])
def test_numbers_of_draws_are_whole_and_positive(wrong):
    with pytest.raises(ValueError, match=r"expected (n|batches) as a whole number of at least 1"):
        ExpectedGradCAM(baselines=BASELINES, **wrong)


def test_listed_baselines_are_the_only_ones_that_matter():
    other = BASELINES.clone()
    other[[0, 3]] = float("nan")
    a, b = (ExpectedGradCAM(baselines=t, n=4, draws=[1, 2])(toy(), toy_images(1), 1) for t in (BASELINES, other))
    assert a.any()
    assert torch.equal(a, b)
