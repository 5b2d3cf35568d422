import pytest
import torch
from support.networks import residual, residual_terms
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import TGrad
from interpretable_training.attribution.core.map_operations import resize


@pytest.mark.parametrize("corners", [False, True])
def test_t_grad_equals_printed_sum(corners):
    net, x = residual()
    expected = torch.zeros(3, 16, 16, dtype=torch.float64)
    for T in residual_terms(net, x):
        for i, t in enumerate(T.detach()):
            S = sum(channel.clamp(min=0) for channel in t)
            up = resize(S[None], (16, 16), corners)[0]
            score = max(float(t.sum()), 0)
            expected[i] += score * up / up.sum() if up.sum() > 0 else 0
    assert_close(TGrad(align_corners=corners)(net, x, 1), expected, rtol=1e-9, atol=1e-12)


def test_t_grad_map_sums_to_scores():
    net, x = residual()
    parts = TGrad().parts(net, x, 1)
    assert_close(TGrad()(net, x, 1).sum((1, 2)), parts.scores.sum(0))
    assert all((S >= 0).all() for S in parts.maps)
    assert all((S.sum((1, 2)) >= v - 1e-12).all() for S, v in zip(parts.maps, parts.scores))
    assert_close(parts.totals.sum(0) + parts.residual - net(x)[:, 1].detach(), parts.delta, rtol=0, atol=1e-12)


def test_t_grad_residual_is_bias_of_linear_layers():
    net, x = residual()
    z = {}

    def keep(module, args, out):
        z[module] = out
        return out.clone()  # what follows works in place

    handles = [net.head[k].register_forward_hook(keep) for k in (1, 3)]
    y = net(x)[:, 1].sum()
    g = torch.autograd.grad(y, list(z.values()))
    for handle in handles:
        handle.remove()
    by_hand = sum((gz * module.bias).sum(1) for module, gz in zip(z, g))
    parts = TGrad().parts(net, x, 1)
    assert_close(parts.residual, by_hand.detach())
    uniform = TGrad(fc="uniform")(net, x, 1) - TGrad()(net, x, 1)
    spread = by_hand.detach().relu()[:, None, None] / 256
    assert_close(uniform, spread.expand(3, 16, 16), rtol=1e-9, atol=1e-12)


def test_t_grad_of_negative_contributions_is_zero():
    """y = -sum of |w x + b| with w, b > 0 and x > 0: all parts are negative."""
    conv = nn.Conv2d(1, 1, 1).double()
    nn.init.constant_(conv.weight, 2.0)
    nn.init.constant_(conv.bias, 1.0)
    head = nn.Linear(4, 1, bias=False).double()
    nn.init.constant_(head.weight, -1.0)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head)
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    assert not TGrad()(net, x, 1).any()
    assert_close(TGrad()(net, x, 0).sum((1, 2)), (2 * x + 1).sum((1, 2, 3)))  # the score of class 0 is -y


def test_t_grad_refuses_unknown_fc():
    with pytest.raises(ValueError, match="'spread'"):
        TGrad(fc="spread")
