"""How many passes methods spend, counted."""

import pytest
import torch
from support.attributions import BASELINES, toy_images
from support.tally import Tally
from torch import Tensor, nn

from interpretable_training.attribution import (
    RISE,
    ExpectedGradCAM,
    FullGrad,
    Occlusion,
    PolyCAM,
    TGrad,
    TransformerAttribution,
    cache_baselines,
)


class Count(torch.autograd.Function):
    """Passes on what it gets and counts images, forward and backward."""

    @staticmethod
    def forward(ctx, x, counts):
        ctx.counts = counts
        counts["F"].append(len(x))
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.counts["B"].append(len(g))
        return g, None


class Counted(nn.Module):
    """A small network with batch norm that counts at its output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(True), nn.Conv2d(6, 5, 3, 2, 1))
        self.head = nn.Linear(5, 4)
        self.counts = {"F": Tally(), "B": Tally()}

    def forward(self, x: Tensor) -> Tensor:
        return Count.apply(self.head(self.body(x).mean((2, 3))), self.counts)


@pytest.fixture
def net():
    return Counted().eval()


def spent(method, net, target=(0, 1, 2)):
    net.counts = {"F": Tally(), "B": Tally()}
    method(net, toy_images(), torch.tensor(target))
    return sum(net.counts["F"]), sum(net.counts["B"])


@pytest.mark.parametrize("method", [FullGrad(), TGrad(), FullGrad(implicit=True)])
def test_full_grad_and_t_grad_cost_one_forward_and_backward(method, net):
    assert spent(method, net) == (3, 3)


def test_rise_costs_one_pass_per_mask(net):
    assert spent(RISE(n=50), net) == (3 * 50, 0)


def test_occlusion_costs_one_pass_per_patch(net):
    assert spent(Occlusion(8, 8), net) == (3 * 2 * 3 + 3, 0)  # 16 x 24 pixels, and the score itself


@pytest.mark.parametrize(("variant", "passes"), [("+", 1), ("-", 1), ("+-", 2)])
def test_poly_cam_costs_passes_per_channel(variant, passes, net):
    method = PolyCAM(variant, layers=["body.2", "body.3"])
    assert spent(method, net) == (3 * passes * (6 + 5) + 3, 0)


def test_expected_grad_cam_costs_one_pass_per_draw(net):
    cached = cache_baselines(net, BASELINES)
    forward, backward = spent(ExpectedGradCAM(baselines=cached), net)
    assert backward == 3 * 50
    assert forward == 3 * 50 + 3 + 1
    assert forward <= 1.15 * 3 * 50
    fresh, _ = spent(ExpectedGradCAM(baselines=BASELINES, draws="sequential"), net)
    assert fresh == 3 * 50 + 3 + len(BASELINES)


def test_transformer_attribution_costs_two_forward_passes():
    from support.attributions import toy

    passes = Tally()
    net = toy("transformerattribution")
    net.head.register_forward_hook(lambda m, args, out: passes.append(len(out)))
    for relevance, expected in (("lrp", [3, 3]), ("attn", [3])):
        passes.clear()
        TransformerAttribution(relevance=relevance)(net, toy_images(), torch.tensor([0, 1, 2]))
        assert passes == expected
