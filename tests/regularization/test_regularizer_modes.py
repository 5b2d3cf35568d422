import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.regularized_nets import Residual, batch, naive, parameter_gradient, vgg
from torch import nn
from torch.testing import assert_close

from interpretable_training.models import TinyViT
from interpretable_training.regularization import GuidedGradientRegularizer, cosine, guided_gradient, input_gradient

STRONG = GuidedGradientRegularizer(weight=1.0)


def test_every_k_th_step_and_the_schedule():
    thinned = GuidedGradientRegularizer(weight=2.0, every_n_steps=3)
    assert [thinned.weight_at(step) for step in range(5)] == [2, 0, 0, 2, 0]
    assert replace(thinned, rescale=True).weight_at(3) == 6
    assert [replace(STRONG, warmup_steps=4).weight_at(step) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    net, (images, target) = vgg(), batch()
    loss, parts = thinned(net, images, target, step=1)
    assert parts.regularization is None
    assert loss is parts.classification
    with pytest.raises(
        ValueError, match=r"expected step=..., which every_n_steps=3 and warmup_steps=0 count, got none"
    ):
        thinned(net, images, target)


def test_a_fraction_is_the_regularizer_of_the_first_images():
    net, (images, target) = vgg(), batch()
    net[7].p = 0.0
    _, part = replace(STRONG, fraction=0.5)(net, images, target)
    _, alone = STRONG(net, images[:3], target[:3])
    assert_close(part.regularization, alone.regularization)
    assert_close(parameter_gradient(part.regularization, net), parameter_gradient(alone.regularization, net))


def test_at_a_layer_it_is_the_regularizer_of_what_lies_behind():
    """The gradient of the parameters before the layer comes through the layer's output alone."""
    net, (images, target) = vgg().eval(), batch()
    _, parts = replace(STRONG, at="3")(net, images, target)
    A = net[:4](images)
    x = A.detach().requires_grad_()
    behind = net[4:]
    L_R, d, d2 = naive(behind, x, target)
    assert_close(parts.regularization, L_R)
    assert parts.gated == 2
    assert_close(input_gradient(net, images, target, at="3"), d.detach())
    assert_close(guided_gradient(net, images, target, at="3"), d2)
    assert_close(parameter_gradient(parts.regularization, behind), parameter_gradient(L_R, behind))
    direct = torch.zeros_like(parameter_gradient(parts.regularization, net[:4]))
    d_A = torch.autograd.grad(F.cross_entropy(behind(A), target), A, create_graph=True)[0]
    L_A = cosine(d_A, d2).mean()
    assert_close(parameter_gradient(parts.regularization, net[:4]), direct + parameter_gradient(L_A, net[:4]))


def test_public_gradients_are_differentiable_and_leave_the_model_alone():
    net, (images, target) = vgg(), batch()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    random = torch.get_rng_state()
    d = input_gradient(net, images, target, create_graph=True)
    d2 = guided_gradient(net, images, target, create_graph=True)
    assert torch.equal(random, torch.get_rng_state())
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    for gradient in (d, d2):
        assert parameter_gradient(gradient.square().sum(), net).abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not guided_gradient(net, images, target).requires_grad


@pytest.mark.parametrize("psi", [nn.ReLU6(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish()], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_other_activations_follow_the_rule(psi):
    """g_in = psi'(z) [g_out]+ 1[z > 0], in a perceptron of one hidden layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), psi, nn.Linear(6, 3)).double()
    images, target = 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    z = net[1](images.flatten(1)).detach().requires_grad_()
    A = psi(z.clone())
    slope = torch.autograd.grad(A.sum(), z)[0]
    g = ((net[3](A).softmax(1) - F.one_hot(target, 3)) / 4).detach() @ net[3].weight.detach()
    expected = (slope * g.relu() * (z > 0)) @ net[1].weight
    assert_close(guided_gradient(net, images, target), expected.detach().view_as(images))
    assert STRONG(net, images, target)[1].gated == 1


def test_no_activation_is_an_error_that_names_the_model_and_the_way_out():
    images, target = batch()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    with pytest.raises(ValueError, match=r"none ran in Sequential with scope='all'.*train without this regularizer"):
        STRONG(linear, images, target)
    with pytest.raises(ValueError, match=r"none ran in Residual.*Pass scope='all', take .* at an earlier layer"):
        replace(STRONG, at="head")(Residual(), images, target)
    assert torch._C._len_torch_function_stack() == 0


def test_images_that_the_loss_does_not_see_are_an_error():
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
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GuidedGradientRegularizer(**options)


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_with_a_class_token():
    net = TinyViT(4, image_size=8, patch=4, dim=8, heads=2).double()
    images, target = batch()
    _, parts = STRONG(net, images, target)
    assert parts.gated == 2
    assert parameter_gradient(parts.regularization, net).abs().sum() > 0
