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

from interpretable_training.regularization import (
    GuidedGradientRegularizer,
    both_gradients,
    guided_gradient,
    input_gradient,
)
from interpretable_training.regularization.errors import ERRORS
from interpretable_training.regularization.gradients import Run

STRONG = GuidedGradientRegularizer(weight=1.0)


@pytest.mark.parametrize("error", ERRORS)
def test_a_naive_version_with_two_networks_agrees_where_both_see_the_same_activations(error):
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


def test_a_naive_version_misses_activations_made_inside_forward():
    net, (images, target) = Residual().eval(), batch()
    _, parts = STRONG(net, images, target)
    _, modules = replace(STRONG, scope="modules")(net, images, target)
    L_R, _, d2 = naive(net, images, target)
    assert (parts.gated, modules.gated) == (4, 2)
    assert_close(modules.regularization, L_R)
    assert_close(guided_gradient(net, images, target, scope="modules"), d2)
    assert (parts.regularization - L_R).abs() > 0.01


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("make", [vgg, Residual])
def test_parameter_gradient_is_that_of_finite_differences_with_the_guided_branch_frozen(make, error, monkeypatch):
    """In training mode, so that each image's gradient goes through the statistics of all."""
    net, (images, target) = make(), batch()
    gradient, frozen = Run.gradient, []

    def freeze(run, loss, guided, **options):
        found = gradient(run, loss, guided, **options)
        if not guided:
            return found
        frozen.append(found)
        return frozen[0]

    def evaluate():
        torch.manual_seed(3)  # the same dropout mask
        return replace(STRONG, error=error)(net, images, target)[1].regularization

    monkeypatch.setattr(Run, "gradient", freeze)
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
def test_where_all_evidence_is_positive_both_gradients_are_equal(error, expected):
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


def test_two_layers_by_hand():
    """y = W relu(U x): d = U^T (1[z > 0] * W^T p), d' the same with [W^T p]+; p = softmax(y) - t, divided by B."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)).double()
    images, target = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    U, W = net[1].weight.detach(), net[3].weight.detach()
    z = images.flatten(1) @ U.T
    p = ((z.relu() @ W.T).softmax(1) - F.one_hot(target, 3)) / 4
    d, d2 = (((z > 0) * g) @ U for g in (p @ W, (p @ W).relu()))
    assert_close(input_gradient(net, images, target), d.view_as(images))
    assert_close(guided_gradient(net, images, target), d2.view_as(images))
    expected = -sum(a @ b / (a.norm() * b.norm()) for a, b in zip(d, d2)) / 4
    assert_close(STRONG(net, images, target)[1].regularization, expected)


def test_weight_zero_is_plain_training_to_the_bit():
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
def test_classification_loss_and_statistics_are_those_of_one_forward_pass(regularizer):
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


def test_all_errors_but_mae_and_mse_are_free_of_the_scale_and_those_are_with_sums():
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


def test_scale_changes_nothing():
    net, (images, target) = vgg().eval(), batch()
    for error in ERRORS:
        regularizer = replace(STRONG, error=error)
        a, b = (regularizer(net, images, target, scale=scale)[0] for scale in (1.0, 1024.0))
        assert_close(a, b)


def test_a_function_may_be_the_error():
    net, (images, target) = vgg().eval(), batch()
    _, parts = replace(STRONG, error=lambda d, d2: (d - d2).abs().flatten(1).amax(1))(net, images, target)
    d, d2 = both_gradients(net, images, target)
    assert_close(parts.regularization.detach(), (d - d2).abs().amax((1, 2, 3)).mean())


def test_nothing_of_a_step_stays_behind():
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
