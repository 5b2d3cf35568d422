"""The regularizer: numbers, options and errors."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.regularized_nets import Residual, batch, naive, parameter_gradient, vgg
from torch import nn
from torch.testing import assert_close

from interpretable_training.models import TinyViT
from interpretable_training.regularization import (
    GuidedGradientRegularizer,
    both_gradients,
    cosine,
    guided_loss_gradient,
    loss_gradient,
)
from interpretable_training.regularization.errors import ERRORS
from interpretable_training.regularization.gradients import RecordedForward

STRONG = GuidedGradientRegularizer(weight=1.0)


@pytest.mark.parametrize("error", ERRORS)
def test_regularizer_equals_naive_version_with_two_networks(error):
    net, (images, target) = vgg().eval(), batch()
    regularizer = replace(STRONG, error=error)
    loss, parts = regularizer(net, images, target)
    L_R, d, d2 = naive(net, images, target, ERRORS[error])
    assert_close(parts.regularization, L_R)
    assert_close(loss, F.cross_entropy(net(images), target) + L_R)
    assert_close(parameter_gradient(parts.regularization, net), parameter_gradient(L_R, net))
    assert_close(both_gradients(net, images, target), (d.detach(), d2))
    assert_close(parts.norm, d.flatten(1).norm(dim=1).mean().detach())
    assert_close(parts.guided_norm, d2.flatten(1).norm(dim=1).mean())
    assert parts.gated == 3


def test_naive_version_misses_activations_inside_forward():
    net, (images, target) = Residual().eval(), batch()
    _, parts = STRONG(net, images, target)
    _, modules = replace(STRONG, scope="modules")(net, images, target)
    L_R, _, d2 = naive(net, images, target)
    assert (parts.gated, modules.gated) == (4, 2)
    assert_close(modules.regularization, L_R)
    assert_close(guided_loss_gradient(net, images, target, scope="modules"), d2)
    assert (parts.regularization - L_R).abs() > 0.01


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("make", [vgg, Residual])
def test_parameter_gradient_equals_finite_differences(make, error, monkeypatch):
    """In training mode, so that each image's gradient goes through the statistics of all."""
    net, (images, target) = make(), batch()
    gradient, frozen = RecordedForward.gradient, []

    def freeze(run, loss, guided, **options):
        results = gradient(run, loss, guided, **options)
        if not guided:
            return results
        frozen.append(results)
        return frozen[0]

    def evaluate():
        torch.manual_seed(3)  # the same dropout mask
        return replace(STRONG, error=error)(net, images, target)[1].regularization

    monkeypatch.setattr(RecordedForward, "gradient", freeze)
    exact = parameter_gradient(evaluate(), net)
    parameters, eps = [*net.parameters()], 1e-7
    direction = [torch.randn_like(p) for p in parameters]
    ends = []
    for sign in (1, -1):
        for p, v in zip(parameters, direction):
            p.data += sign * eps * v
        ends.append(evaluate().detach())
        for p, v in zip(parameters, direction):
            p.data -= sign * eps * v
    slope = (ends[0] - ends[1]) / (2 * eps)
    assert_close(exact @ torch.cat([v.flatten() for v in direction]), slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("error", "expected"), [("cosine", -1), ("histogram", -1), ("mae", 0), ("mse", 0)])
def test_positive_network_has_equal_gradients(error, expected):
    """y = (relu(U x), 0) with U > 0, of class 1: what comes back to the ReLU is the probability of class 0."""
    U = torch.rand(1, 3 * 16, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.U = nn.Parameter(U)

        def forward(self, x):
            y = F.relu(F.linear(x.flatten(1), self.U))
            return torch.cat([y, torch.zeros_like(y)], 1)

    images = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    _, parts = replace(STRONG, error=error)(Net(), images, torch.ones(3, dtype=torch.long))
    assert parts.regularization.item() == pytest.approx(expected, abs=1e-12)
    assert parts.similarity.item() == pytest.approx(1)


def test_gradients_of_two_layers_by_hand():
    """y = W relu(U x): d = U^T (1[z > 0] * W^T p), d' the same with [W^T p]+; p = softmax(y) - t, divided by B."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)).double()
    images, target = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    U, W = net[1].weight.detach(), net[3].weight.detach()
    z = images.flatten(1) @ U.T
    p = ((z.relu() @ W.T).softmax(1) - F.one_hot(target, 3)) / 4
    d, d2 = (((z > 0) * g) @ U for g in (p @ W, (p @ W).relu()))
    assert_close(loss_gradient(net, images, target), d.view_as(images))
    assert_close(guided_loss_gradient(net, images, target), d2.view_as(images))
    expected = -sum(a @ b / (a.norm() * b.norm()) for a, b in zip(d, d2)) / 4
    assert_close(STRONG(net, images, target)[1].regularization, expected)


def test_weight_zero_equals_plain_training_to_the_bit():
    states = []
    for regularizer in (None, GuidedGradientRegularizer(weight=0.0)):
        net, (images, target) = vgg(), batch()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        torch.manual_seed(2)
        for _ in range(3):
            plain = regularizer is None
            loss = F.cross_entropy(net(images), target) if plain else regularizer(net, images, target)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        states.append([*net.state_dict().values(), loss, *(p.grad for p in net.parameters()), torch.get_rng_state()])
    assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("regularizer", [STRONG, replace(STRONG, fraction=0.5), replace(STRONG, at="3")])
def test_loss_and_statistics_equal_one_forward_pass(regularizer):
    net, (images, target) = vgg(), batch()
    plain = copy.deepcopy(net)
    torch.manual_seed(2)
    loss, parts = regularizer(net, images, target)
    loss.backward()
    torch.manual_seed(2)
    assert_close(parts.classification, F.cross_entropy(plain(images), target), rtol=0, atol=0)
    assert_close([*net.buffers()], [*plain.buffers()], rtol=0, atol=0)
    assert not images.requires_grad
    assert images.grad is None


def test_errors_do_not_depend_on_the_batch_size():
    """The mean loss of a batch seen twice has half the gradient per image."""
    net, (images, target) = vgg().eval(), batch()
    twice = images.repeat(2, 1, 1, 1), target.repeat(2)

    def ratio(**options):
        regularizer = GuidedGradientRegularizer(weight=1.0, **options)
        once, again = (regularizer(net, *b)[1].regularization for b in ((images, target), twice))
        return (again / once).item()

    assert ratio(error="cosine") == pytest.approx(1)
    assert ratio(error="histogram") == pytest.approx(1)
    assert ratio(error="mae") == pytest.approx(1 / 2)
    assert ratio(error="mse") == pytest.approx(1 / 4)
    assert ratio(error="mae", grad_of="sum") == pytest.approx(1)
    assert ratio(error="mse", grad_of="sum") == pytest.approx(1)


def test_loss_scale_changes_nothing():
    net, (images, target) = vgg().eval(), batch()
    for error in ERRORS:
        regularizer = replace(STRONG, error=error)
        a, b = (regularizer(net, images, target, scale=scale)[0] for scale in (1.0, 1024.0))
        assert_close(a, b)


def test_error_accepts_a_function():
    net, (images, target) = vgg().eval(), batch()
    _, parts = replace(STRONG, error=lambda d, d2: (d - d2).abs().flatten(1).amax(1))(net, images, target)
    d, d2 = both_gradients(net, images, target)
    assert_close(parts.regularization.detach(), (d - d2).abs().amax((1, 2, 3)).mean())


def test_step_leaves_no_tensor_hook_or_mode():
    net, (images, target) = vgg(), batch()
    gc.collect()
    gc.disable()
    try:
        loss, parts = STRONG(net, images, target)
        loss.backward()
        left = [weakref.ref(loss), weakref.ref(parts.output), weakref.ref(parts.regularization)]
        del loss, parts
        assert [ref() for ref in left] == [None] * 3
    finally:
        gc.enable()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_weight_at_follows_steps_and_warmup():
    thinned = GuidedGradientRegularizer(weight=2.0, every_n_steps=3)
    assert [thinned.weight_at(step) for step in range(5)] == [2, 0, 0, 2, 0]
    assert replace(thinned, rescale=True).weight_at(3) == 6
    assert [replace(STRONG, warmup_steps=4).weight_at(step) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    net, (images, target) = vgg(), batch()
    loss, parts = thinned(net, images, target, step=1)
    assert parts.regularization is None
    assert loss is parts.classification
    with pytest.raises(ValueError, match=r"expected step=... because of every_n_steps=3 and warmup_steps=0, got none"):
        thinned(net, images, target)


def test_fraction_regularizes_the_first_images():
    net, (images, target) = vgg(), batch()
    net[7].p = 0.0
    _, part = replace(STRONG, fraction=0.5)(net, images, target)
    _, alone = STRONG(net, images[:3], target[:3])
    assert_close(part.regularization, alone.regularization)
    assert_close(parameter_gradient(part.regularization, net), parameter_gradient(alone.regularization, net))


def test_at_layer_regularizes_the_rest_of_the_network():
    """The gradient of the parameters before the layer comes through the layer's output alone."""
    net, (images, target) = vgg().eval(), batch()
    _, parts = replace(STRONG, at="3")(net, images, target)
    A = net[:4](images)
    x = A.detach().requires_grad_()
    behind = net[4:]
    L_R, d, d2 = naive(behind, x, target)
    assert_close(parts.regularization, L_R)
    assert parts.gated == 2
    assert_close(loss_gradient(net, images, target, at="3"), d.detach())
    assert_close(guided_loss_gradient(net, images, target, at="3"), d2)
    assert_close(parameter_gradient(parts.regularization, behind), parameter_gradient(L_R, behind))
    direct = torch.zeros_like(parameter_gradient(parts.regularization, net[:4]))
    d_A = torch.autograd.grad(F.cross_entropy(behind(A), target), A, create_graph=True)[0]
    L_A = cosine(d_A, d2).mean()
    assert_close(parameter_gradient(parts.regularization, net[:4]), direct + parameter_gradient(L_A, net[:4]))


def test_public_gradients_are_differentiable_and_change_nothing():
    net, (images, target) = vgg(), batch()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    random = torch.get_rng_state()
    d = loss_gradient(net, images, target, create_graph=True)
    d2 = guided_loss_gradient(net, images, target, create_graph=True)
    assert torch.equal(random, torch.get_rng_state())
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    for gradient in (d, d2):
        assert parameter_gradient(gradient.square().sum(), net).abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not guided_loss_gradient(net, images, target).requires_grad


@pytest.mark.parametrize("psi", [nn.ReLU6(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish()], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_other_activations_follow_the_guided_rule(psi):
    """g_in = psi'(z) [g_out]+ 1[z > 0], in a perceptron of one hidden layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), psi, nn.Linear(6, 3)).double()
    images, target = 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    z = net[1](images.flatten(1)).detach().requires_grad_()
    A = psi(z.clone())
    slope = torch.autograd.grad(A.sum(), z)[0]
    g = ((net[3](A).softmax(1) - F.one_hot(target, 3)) / 4).detach() @ net[3].weight.detach()
    expected = (slope * g.relu() * (z > 0)) @ net[1].weight
    assert_close(guided_loss_gradient(net, images, target), expected.detach().view_as(images))
    assert STRONG(net, images, target)[1].gated == 1


def test_network_without_activations_is_an_error():
    images, target = batch()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    with pytest.raises(ValueError, match=r"none ran in Sequential with scope='all'.*train without this regularizer"):
        STRONG(linear, images, target)
    with pytest.raises(ValueError, match=r"none ran in Residual.*Pass scope='all', take .* at an earlier layer"):
        replace(STRONG, at="head")(Residual(), images, target)
    assert torch._C._len_torch_function_stack() == 0


def test_loss_that_ignores_the_images_is_an_error():
    net, (images, target) = vgg(), batch()

    class Detached(nn.Module):
        def forward(self, x):
            return net(x.detach())

    with pytest.raises(ValueError, match=r"expected a loss that depends on the input of Detached"):
        STRONG(Detached(), images, target)
    with pytest.raises(TypeError, match=r"expected floating point images, .* got torch.uint8"):
        STRONG(net, images.to(torch.uint8), target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "l1"}, r"expected error to be one of \['cosine', .* got 'l1'"),
        ({"weight": -1.0}, "expected weight >= 0, got -1"),
        ({"weight": float("nan")}, "expected weight >= 0, got nan"),
        ({"fraction": 0.0}, r"expected fraction in \(0, 1\], got 0"),
        ({"every_n_steps": 0}, "expected every_n_steps >= 1"),
        ({"scope": "functions"}, r"expected scope to be one of .* got 'functions'"),
        ({"grad_of": "max"}, r"expected grad_of to be one of .* got 'max'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GuidedGradientRegularizer(**options)


@pytest.mark.filterwarnings("ignore")
def test_transformer_with_class_token_is_regularized():
    net = TinyViT(4, image_size=8, patch=4, dim=8, heads=2).double()
    images, target = batch()
    _, parts = STRONG(net, images, target)
    assert parts.gated == 2
    assert parameter_gradient(parts.regularization, net).abs().sum() > 0
