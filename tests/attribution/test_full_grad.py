import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FullGrad, TGrad
from interpretable_training.attribution.core.map_operations import resize

BOTH = pytest.mark.parametrize("method", [FullGrad(), TGrad()], ids=["fullgrad", "tgrad"])


class Residual(nn.Module):
    """Convolutions with bias, batch norm, in-place ReLU, a residual sum in place, pooling and two linear layers."""

    def __init__(self, axes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> None:
        super().__init__()
        Conv, Norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.stem = nn.Sequential(Conv(2, 6, 3, 2, 1, bias=bias), Norm(6), act())
        self.body = nn.Sequential(Conv(6, 6, 3, 1, 1, bias=bias), Norm(6), act(), Conv(6, 6, 1, bias=bias))
        self.pool = getattr(nn, f"MaxPool{axes}d")(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 2**axes, 9, bias), nn.ReLU(True), nn.Linear(9, 3, bias))
        self.mean = getattr(nn, f"AdaptiveAvgPool{axes}d")(2)

    def forward(self, x):
        x = self.stem(x)
        out = self.body(x)
        out += x
        return self.head(self.mean(self.pool(F.relu_(out))))


def residual(axes=2, bias=True, **options):
    with torch.random.fork_rng():
        torch.manual_seed(axes)
        net = Residual(axes, bias=bias, **options).double().eval()
        for module in net.modules():
            if hasattr(module, "running_var"):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.weight)
                for tensor in (module.running_mean, module.bias):
                    tensor.data.normal_() if bias else tensor.data.zero_()
        return net, torch.randn(3, 2, *[16] * axes, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_image_and_biases_add_up_to_the_score(method, axes):
    net, x = residual(axes)
    y = net(x)[:, 1].detach()
    assert (method.delta(net, x, 1) / y).abs().max() < 1e-10
    assert method(net, x, 1).shape == (3, *[16] * axes)


@BOTH
@pytest.mark.parametrize(
    ("act", "scale"), [(nn.GELU, 3), (nn.SiLU, 3), (nn.Tanh, 3), (nn.ReLU6, 30), (nn.Hardswish, 3), (nn.ELU, 3)]
)
def test_with_the_implicit_biases_of_activations_too(method, act, scale):
    net, x = residual(act=act)
    x, y = scale * x, net(scale * x)[:, 1].detach()
    with pytest.warns(UserWarning, match="implicit=True adds"):
        missing = method.delta(net, x, 1)
    assert (missing / y).abs().max() > 0.01
    whole = type(method)(implicit=True)
    assert (whole.delta(net, x, 1) / y).abs().max() < 1e-10
    assert not torch.allclose(FullGrad(implicit=True)(net, x, 1), FullGrad()(net, x, 1))


@BOTH
def test_layer_norm_is_told(method, function):
    norm = nn.LayerNorm(64).double()
    with pytest.warns(UserWarning, match="not piecewise linear"):
        method(function(lambda x, norm: norm(x.flatten(1))[:, :3], norm=norm), torch.randn(2, 1, 8, 8).double())


def test_nothing_is_told_of_a_network_that_is_complete():
    net, x = residual()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad()(net.float(), x.float())


def pieces(net, x, target=1):
    """dy/dx * x and dy/dz * b of all operations with a place, one after the other by hand."""
    conv1, norm1 = net.stem[:2]
    conv2, norm2, _, conv3 = net.body
    x = x.clone().requires_grad_()
    z1 = conv1(x)
    z2 = norm1(z1)
    z3 = conv2(z2.relu())
    z4 = norm2(z3)
    z5 = conv3(z4.relu())
    y = net.head(net.mean(net.pool((z5 + z2.relu()).relu())))[:, target].sum()
    gx, *g = torch.autograd.grad(y, [x, z1, z2, z3, z4, z5])
    shift = [n.bias - n.weight * n.running_mean / (n.running_var + n.eps) ** 0.5 for n in (norm1, norm2)]
    biases = [conv1.bias, shift[0], conv2.bias, shift[1], conv3.bias]
    return [x * gx, *[b[:, None, None] * gz for b, gz in zip(biases, g)]]


def n(v):
    return (v - v.min()) / (v.max() - v.min()) if v.max() > v.min() else 0 * v


@pytest.mark.parametrize("rescale", ["layer", "channel", "none"])
@pytest.mark.parametrize("corners", [False, True])
def test_the_map_is_the_printed_sum(rescale, corners):
    net, x = residual()
    parts = [T.detach().abs() for T in pieces(net, x)]
    expected = torch.zeros(3, 16, 16, dtype=torch.float64)
    for T in parts:
        for i in range(3):
            for k in range(T.shape[1]):
                S = n(T[i])[k] if rescale == "layer" else n(T[i, k]) if rescale == "channel" else T[i, k]
                expected[i] += resize(S[None], (16, 16), corners)[0]
    method = FullGrad(rescale=rescale, align_corners=corners)
    assert_close(method(net, x, 1), expected, rtol=1e-9, atol=1e-9)


def test_without_biases_only_the_image_remains():
    net, x = residual(bias=False)
    leaf = x.clone().requires_grad_()
    y = net(leaf)[:, 1]
    T = (torch.autograd.grad(y.sum(), leaf)[0] * x).detach()
    assert_close(T.sum((1, 2, 3)), y.detach())
    expected = torch.stack([n(t.abs()).sum(0) for t in T])
    assert_close(FullGrad()(net, x, 1), expected)


def test_the_scale_of_the_logits_does_not_matter(function):
    net, x = residual()
    small = function(lambda x, net: 1e-9 * net(x), net=net)
    assert_close(FullGrad()(small, x, 1), FullGrad()(net, x, 1))


def test_functional_and_reused_layers_count_each_time_that_they_run(function):
    w, b = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)

    def forward(x):
        for _ in range(3):
            x = F.conv2d(x, w, b, padding=1).relu()
        return x.flatten(1).mean(1, keepdim=True)

    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    parts = TGrad().parts(function(forward), x, 1)
    assert len(parts.maps) == 4
    assert_close(parts.delta, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_cell_behind_global_pooling_has_no_place():
    net, x = residual()
    conv = nn.Conv2d(6, 4, 1).double()
    tail = nn.Sequential(net.stem, nn.AdaptiveAvgPool2d(1), conv, nn.Flatten())
    parts = TGrad().parts(tail, x, 1)
    assert len(parts.maps) == 3
    assert_close(parts.residual, conv.bias[1].detach().expand(3))


def test_a_forward_without_gradients_is_refused(function):
    net, x = residual()

    def forward(x, net):
        with torch.no_grad():
            return net(x)

    with pytest.raises(RuntimeError, match="gradients"):
        FullGrad()(function(forward, net=net), x)
