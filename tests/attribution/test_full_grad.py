import warnings

import pytest
import torch
import torch.nn.functional as F
from support.networks import residual, residual_terms
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FullGrad, TGrad
from interpretable_training.attribution.core.map_operations import resize

BOTH = pytest.mark.parametrize("method", [FullGrad(), TGrad()], ids=["fullgrad", "tgrad"])


@BOTH
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_image_and_bias_terms_add_up_to_the_score(method, axes):
    net, x = residual(axes)
    y = net(x)[:, 1].detach()
    assert (method.delta(net, x, 1) / y).abs().max() < 1e-10
    assert method(net, x, 1).shape == (3, *[16] * axes)


@BOTH
@pytest.mark.parametrize(
    ("act", "scale"), [(nn.GELU, 3), (nn.SiLU, 3), (nn.Tanh, 3), (nn.ReLU6, 30), (nn.Hardswish, 3), (nn.ELU, 3)]
)
def test_implicit_biases_complete_smooth_activations(method, act, scale):
    net, x = residual(act=act)
    x, y = scale * x, net(scale * x)[:, 1].detach()
    with pytest.warns(UserWarning, match="implicit=True adds"):
        missing = method.delta(net, x, 1)
    assert (missing / y).abs().max() > 0.01
    whole = type(method)(implicit=True)
    assert (whole.delta(net, x, 1) / y).abs().max() < 1e-10
    assert not torch.allclose(FullGrad(implicit=True)(net, x, 1), FullGrad()(net, x, 1))


@BOTH
def test_bias_warning_names_layer_norm(method, function):
    norm = nn.LayerNorm(64).double()
    with pytest.warns(UserWarning, match="not piecewise linear"):
        method(function(lambda x, norm: norm(x.flatten(1))[:, :3], norm=norm), torch.randn(2, 1, 8, 8).double())


def test_bias_warning_is_silent_for_complete_network():
    net, x = residual()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad()(net.float(), x.float())


def n(v):
    return (v - v.min()) / (v.max() - v.min()) if v.max() > v.min() else 0 * v


@pytest.mark.parametrize("rescale", ["layer", "channel", "none"])
@pytest.mark.parametrize("corners", [False, True])
def test_full_grad_equals_printed_sum(rescale, corners):
    net, x = residual()
    parts = [T.detach().abs() for T in residual_terms(net, x)]
    expected = torch.zeros(3, 16, 16, dtype=torch.float64)
    for T in parts:
        for i in range(3):
            for k in range(T.shape[1]):
                S = n(T[i])[k] if rescale == "layer" else n(T[i, k]) if rescale == "channel" else T[i, k]
                expected[i] += resize(S[None], (16, 16), corners)[0]
    method = FullGrad(rescale=rescale, align_corners=corners)
    assert_close(method(net, x, 1), expected, rtol=1e-9, atol=1e-9)


def test_full_grad_without_biases_is_image_term():
    net, x = residual(bias=False)
    leaf = x.clone().requires_grad_()
    y = net(leaf)[:, 1]
    T = (torch.autograd.grad(y.sum(), leaf)[0] * x).detach()
    assert_close(T.sum((1, 2, 3)), y.detach())
    expected = torch.stack([n(t.abs()).sum(0) for t in T])
    assert_close(FullGrad()(net, x, 1), expected)


def test_full_grad_ignores_scale_of_logits(function):
    net, x = residual()
    small = function(lambda x, net: 1e-9 * net(x), net=net)
    assert_close(FullGrad()(small, x, 1), FullGrad()(net, x, 1))


def test_bias_terms_count_every_run_of_reused_layers(function):
    w, b = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)

    def forward(x):
        for _ in range(3):
            x = F.conv2d(x, w, b, padding=1).relu()
        return x.flatten(1).mean(1, keepdim=True)

    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    parts = TGrad().parts(function(forward), x, 1)
    assert len(parts.maps) == 4
    assert_close(parts.delta, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bias_behind_global_pooling_is_residual():
    net, x = residual()
    conv = nn.Conv2d(6, 4, 1).double()
    tail = nn.Sequential(net.stem, nn.AdaptiveAvgPool2d(1), conv, nn.Flatten())
    parts = TGrad().parts(tail, x, 1)
    assert len(parts.maps) == 3
    assert_close(parts.residual, conv.bias[1].detach().expand(3))


def test_full_grad_refuses_forward_without_gradients(function):
    net, x = residual()

    def forward(x, net):
        with torch.no_grad():
            return net(x)

    with pytest.raises(RuntimeError, match="gradients"):
        FullGrad()(function(forward, net=net), x)
