from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import DeconvNet

close = partial(assert_close, rtol=0, atol=1e-9)
RELUS = [nn.ReLU(), nn.ReLU(inplace=True), F.relu_, torch.relu, lambda z: z.clamp_(0), lambda z: z.clamp_min(0)]


@pytest.fixture
def deconv(function):
    """The deconvolution gradient of a function of one number at x."""

    def gradient(forward, x, **options):
        image = torch.full((1, 1, 1), x, dtype=torch.float64)
        return DeconvNet(reduce="none", **options)(function(lambda x: forward(x).flatten(1)), image).item()

    return gradient


@pytest.mark.parametrize("relu", RELUS)
def test_deconv_net_passes_positive_gradients_of_any_input(relu, deconv):
    assert deconv(lambda x: relu(x * 1), -2.0) == 1
    assert deconv(lambda x: relu(x * 1), 2.0) == 1
    assert deconv(lambda x: -relu(x * 1), 2.0) == 0
    assert deconv(lambda x: -relu(x * 1), -2.0) == 0


@pytest.mark.parametrize("relu", RELUS)
def test_deconv_net_keeps_the_forward_pass(relu, deconv):
    """y = relu(x)^2 / 2 sends relu(x) back."""
    assert deconv(lambda x: relu(x * 1).square() / 2, 3.0) == 3
    assert deconv(lambda x: relu(x * 1).square() / 2, -3.0) == 0


def test_deconv_net_does_not_filter_identity_around_relu(deconv):
    assert deconv(lambda x: x.relu() + x, -2.0) == 2
    assert deconv(lambda x: -x.relu() - x, 2.0) == -1


def test_deconv_net_of_two_layers_by_hand(function):
    """y = v relu(U x): g = sum over all units of relu(v) U, for every x."""
    torch.manual_seed(0)
    U, v, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 4), (6,), (3, 1, 2, 2)))
    S = DeconvNet(reduce="none")(function(lambda x: (x.flatten(1) @ U.T).relu() @ v), x)
    close(S.flatten(1), (v.clamp(min=0) @ U).expand(3, -1))


def test_deconv_net_scope_modules_ignores_functional_relu(function):
    x = torch.full((1, 1, 1), -2.0, dtype=torch.float64)
    model = function(lambda x, act: (act(x) + x.relu()).flatten(1), act=nn.ReLU())
    assert DeconvNet(reduce="none")(model, x).item() == 2
    assert DeconvNet(reduce="none", scope="modules")(model, x).item() == 1


def test_deconv_net_refuses_network_without_activations(linear, images):
    with pytest.raises(ValueError, match=r"expected activations .* none ran"):
        DeconvNet()(linear(torch.ones(2, 128)), images)
