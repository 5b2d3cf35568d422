from functools import partial

import pytest
import torch
from support.expected_methods import paths
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, ExpectedGradCAMPlusPlus

Raw = partial(ExpectedGradCAMPlusPlus, relu=False, upsample=False)


def ratio(A, g2, g3):
    return g2 / (2 * g2 + (A * g3).sum((2, 3), keepdim=True))


@pytest.mark.parametrize("form", ["weighted", "literal", "moments"])
@pytest.mark.parametrize("batches", [1, 2])
def test_expected_grad_cam_plusplus_equals_printed_formula(form, batches, network, images, baselines, activations):
    options = {"baselines": baselines, "n": 3, "batches": batches, "seed": 1}
    x, base = paths(ExpectedGradCAM("0", **options), images)
    A, expected = network[0](images).detach(), torch.zeros(2, 4, 4, dtype=torch.float64)
    for b in range(batches):
        draws = [
            (*activations(network, x[s], [1, 1]), A - network[0](base[s]).detach()) for s in range(3 * b, 3 * b + 3)
        ]
        if form == "moments":
            g, g2, g3 = (sum(G**power for _, G, _ in draws) / 3 for power in (1, 2, 3))
            per_place = ratio(A, g2, g3) * g.clamp(min=0) * sum(D for *_, D in draws) / 3
        else:
            parts = [ratio(a, G**2, G**3) * (G.clamp(min=0) if form == "weighted" else 1) * D for a, G, D in draws]
            per_place = sum(parts) / 3
        expected += torch.einsum("bk,bkij->bij", per_place.mean((2, 3)), A) / batches
    assert_close(Raw("0", form=form, **options)(network, images, 1), expected, rtol=1e-7, atol=1e-9)


def test_expected_grad_cam_plusplus_closed_form_for_linear_head(gap_linear, W, features, target):
    """g = W[c, k] / Z everywhere: the ratio is 1 / (2 + W[c, k] mean of A[k] at x[s])."""
    base = torch.rand(1, 4, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cam = ExpectedGradCAM(baselines=base, n=4)
    x, _ = paths(cam, features)
    u = W[target] * x.mean((3, 4))  # (S, B, K)
    D = (features - base).mean((2, 3))
    for form, factor in (("literal", 1), ("weighted", W[target].relu() / 6)):
        w = (factor * D / (2 + u)).mean(0)
        S = Raw("features", baselines=base, n=4, form=form)(gap_linear(W), features, target)
        assert_close(S, torch.einsum("bk,bkij->bij", w, features))


def test_expected_grad_cam_plusplus_literal_counts_negative_slopes(gap_linear, W, features):
    model = gap_linear(-W.abs())
    base = torch.rand(2, 4, 2, 3, dtype=torch.float64)
    assert not Raw("features", baselines=base)(model, features, 1).any()
    assert not Raw("features", baselines=base, form="moments")(model, features, 1).any()
    assert Raw("features", baselines=base, form="literal")(model, features, 1).any()


def test_expected_grad_cam_plusplus_of_signals():
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    S = ExpectedGradCAMPlusPlus(baselines=torch.randn(3, 2, 20), n=4)(net, torch.randn(2, 2, 20))
    assert S.shape == (2, 20)
    assert ExpectedGradCAMPlusPlus(baselines=torch.zeros(1, 2, 20)).form == "weighted"
