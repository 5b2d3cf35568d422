from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GuidedBackprop

close = partial(assert_close, rtol=0, atol=1e-9)
RELUS = {
    "F.relu": F.relu,
    "F.relu in place": lambda z: F.relu(z, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "relu": lambda z: z.relu(),
    "relu_": lambda z: z.relu_(),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "made in forward": lambda z: nn.ReLU(inplace=True)(z),
    "torch.clamp": lambda z: torch.clamp(z, min=0),
    "torch.clamp_": lambda z: torch.clamp_(z, 0),
    "torch.clamp_min": lambda z: torch.clamp_min(z, 0.0),
    "torch.clip": lambda z: torch.clip(z, min=0),
    "clamp": lambda z: z.clamp(min=0.0),
    "clamp_": lambda z: z.clamp_(0),
    "clamp_min": lambda z: z.clamp_min(0),
    "clamp_min_": lambda z: z.clamp_min_(0),
    "clip": lambda z: z.clip(0),
    "keyword": lambda z: F.relu(input=z),
}


@pytest.fixture
def guided(function):
    """The guided gradient of a function of one number at x."""

    def gradient(forward, x, **modules):
        model = function(lambda x, **m: forward(x, **m).flatten(1), **modules)
        image = torch.full((1, 1, 1), x, dtype=torch.float64)
        return GuidedBackprop(reduce="none")(model, image).item()

    return gradient


@pytest.mark.parametrize("name", RELUS)
def test_guided_backprop_passes_positive_gradients_of_positives(name, guided):
    relu = RELUS[name]
    assert guided(lambda x: relu(x * 1), 2.0) == 1
    assert guided(lambda x: -relu(x * 1), 2.0) == 0
    assert guided(lambda x: relu(x * 1), -2.0) == 0


def test_guided_backprop_ignores_clamp_that_is_no_relu(guided):
    assert guided(lambda x: -x.clamp(min=-1) + x.relu(), 2.0) == 0
    assert guided(lambda x: -x.clamp(min=-1) - x.relu(), 2.0) == -1


def test_guided_backprop_ignores_clamp_at_a_tensor(function, images):
    low = torch.full((8, 8), -1.0, dtype=torch.float64)
    S = GuidedBackprop(reduce="none")(function(lambda x: (-x.relu() - x.clamp(min=low)).flatten(1).sum(1)), images)
    close(S, -(images > -1).double())


def test_guided_backprop_does_not_filter_identity_around_relu(guided):
    assert guided(lambda x: -x.relu() - x, 2.0) == -1
    assert guided(lambda x: x.relu() + x, 2.0) == 2
    assert guided(lambda x: x.relu() + x, -2.0) == 1


@pytest.mark.parametrize("inplace", [False, True])
def test_guided_backprop_guides_every_run_of_reused_module(inplace, guided):
    """10 - 2 relu(x): the gradient is positive at the outer relu and -2 at the inner one."""
    act = nn.ReLU(inplace)
    assert guided(lambda x, act: act(10 - 2 * act(x * 1)), 2.0, act=act) == 0
    assert guided(lambda x, act: act(10 + 2 * act(x * 1)), 2.0, act=act) == 2


@pytest.mark.parametrize("relu6", [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, nn.Hardtanh(0, 6)])
def test_guided_backprop_of_relu6_passes_between_zero_and_six(relu6, guided):
    assert [guided(lambda x: relu6(x * 1), x) for x in (-1.0, 3.0, 7.0)] == [0, 1, 0]
    assert guided(lambda x: -relu6(x * 1), 3.0) == 0


def slope(psi, x):
    z = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(psi(z), z)[0].item()


SMOOTH = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Mish(), nn.Softplus()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("psi", [*SMOOTH, nn.Hardswish(), nn.LeakyReLU(0.2)], ids=str)
def test_guided_backprop_of_smooth_activations_passes_their_slope(psi, guided):
    assert guided(psi, 0.8) == pytest.approx(slope(psi, 0.8), abs=1e-9)
    assert guided(psi, -0.5) == 0
    assert guided(lambda x: -psi(x), 0.8) == 0


@pytest.mark.filterwarnings("ignore")
def test_guided_backprop_of_gelu_and_silu_by_hand(guided):
    """Phi(1) + phi(1), and s (1 + 1 - s) with s = sigmoid(1)."""
    assert guided(F.gelu, 1.0) == pytest.approx(0.8413447460685429 + 0.24197072451914337, abs=1e-9)
    s = 1 / (1 + 2.718281828459045**-1)
    assert guided(F.silu, 1.0) == pytest.approx(s * (2 - s), abs=1e-9)


def test_guided_backprop_warns_of_activations_beyond_relu(guided):
    with pytest.warns(UserWarning, match="ReLU"):
        guided(F.gelu, 1.0)


def test_guided_backprop_of_two_layers_by_hand(function):
    """y = v relu(U x): g = sum over units with z > 0 of relu(v) U."""
    torch.manual_seed(0)
    U, v, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 4), (6,), (3, 1, 2, 2)))
    S = GuidedBackprop(reduce="none")(function(lambda x: (x.flatten(1) @ U.T).relu() @ v), x)
    for i in range(3):
        expected = sum(v[j].clamp(min=0) * U[j] for j in range(6) if U[j] @ x[i].flatten() > 0)
        close(S[i].flatten(), expected)


def test_guided_backprop_behind_first_relu_is_not_negative(network, images):
    S = GuidedBackprop(reduce="none")(nn.Sequential(nn.ReLU(), network), images)
    assert S.min() == 0 < S.max()


def test_guided_backprop_routes_max_pooling_to_its_switches(function):
    x = torch.tensor([[1.0, 3], [2, -1]]).view(1, 1, 2, 2).double()
    model = function(lambda x: F.max_pool2d(x.relu(), 2).flatten(1))
    close(GuidedBackprop()(model, x)[0], torch.tensor([[0.0, 1], [0, 0]]).double())


@pytest.mark.parametrize(("reduce", "expected"), [("max_abs", 3.0), ("abs_sum", 5.0), ("signed_sum", -1.0)])
def test_guided_backprop_reduces_channels(reduce, expected, function):
    """y = relu(2 x1 - 3 x2)."""
    model = function(lambda x: (2 * x[:, 0] - 3 * x[:, 1]).relu().flatten(1))
    x = torch.tensor([2.0, 1]).view(1, 2, 1, 1).double()
    assert GuidedBackprop(reduce=reduce)(model, x).item() == expected


def test_guided_backprop_scope_modules_ignores_functional_relu(function):
    """y = -relu(x) three times: as module, as function, and as module that is not registered."""
    x = torch.full((1, 1, 1), 2.0, dtype=torch.float64)
    model = function(lambda x, act: -(act(x) + x.relu() + nn.ReLU()(x)).flatten(1), act=nn.ReLU())
    assert GuidedBackprop(reduce="none")(model, x).item() == 0
    assert GuidedBackprop(reduce="none", scope="modules")(model, x).item() == -2


def test_guided_backprop_refuses_network_without_activations(function, linear, images):
    with pytest.raises(ValueError, match=r"expected activations .* none ran"):
        GuidedBackprop()(linear(torch.ones(2, 128)), images)
    with pytest.raises(ValueError, match="scope='modules'"):
        GuidedBackprop(scope="modules")(function(lambda x: x.relu().flatten(1)), images)


def test_guided_backprop_refuses_unknown_scope(network, images):
    with pytest.raises(ValueError, match="'functions'"):
        GuidedBackprop(scope="functions")(network, images)
