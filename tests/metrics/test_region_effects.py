"""Infidelity and single deletion: linear networks, where both are exact, hand-worked numbers, and the grid."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.metrics import Infidelity, SingleDeletion
from interpretable_training.metrics.region_effects import grid_regions, without_patch

METRICS = [lambda: Infidelity(n=12, score="logit"), lambda: SingleDeletion(2)]
BEST = [0.0, 1.0]


class Linear(nn.Module):
    """Logits <w, x> and 0: what a removed region takes away is the sum of w x over it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        logit = (x * self.weight).flatten(1).sum(1)
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def linear(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.rand(3, 2, size, size, generator=generator).double() for _ in range(2))
    return Linear(w[0]), x, (x * w[0]).sum(1)


@pytest.mark.parametrize(("make", "best"), list(zip(METRICS, BEST)))
def test_the_map_of_a_linear_network_is_perfect_at_any_scale(make, best):
    net, x, S = linear()
    for scale in (1.0, 0.01):
        value = make().measure(model=net, images=x, saliency=scale * S / S.max(), target=0)
        assert_close(value, torch.full((3,), best).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", METRICS)
def test_a_map_of_another_image_is_worse(make):
    net, x, S = linear()
    metric, S = make(), S / S.max()
    good, bad = (metric.measure(model=net, images=x, saliency=maps, target=0) for maps in (S, 1 - S))
    assert (bad > good).all() if isinstance(metric, Infidelity) else (bad < good).all()


def test_infidelity_by_hand():
    """Two single pixels."""
    net = Linear(torch.tensor([[[1.0, 3.0]]]))
    x, S = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[0.5, 1.0]]])
    metric = Infidelity(n=2, score="logit")
    metric.regions = lambda spatial: torch.tensor([[[True, False]], [[False, True]]])
    # a = (0.5, 1), e = (2, 3): b = (1 + 3) / 1.25 = 3.2, errors 0.4 and -0.2 squared
    assert metric.measure(model=net, images=x, saliency=S, target=0).item() == pytest.approx((0.16 + 0.04) / 2)


def test_a_map_of_zeros_predicts_no_effect():
    net, x, S = linear()
    metric = Infidelity(n=5, score="logit")
    _, e = effects(metric, net, x, S / S.max())
    value = metric.measure(model=net, images=x, saliency=torch.zeros_like(S), target=0)
    assert_close(value, e.square().mean(1))


def effects(metric, net, x, S):
    with metric._checked_batch({"model": net, "images": x, "saliency": S, "target": 0}) as scored:
        return metric.predicted_and_measured(scored)


def test_effects_are_differences_of_scores():
    net, x, S = linear()
    metric = SingleDeletion(2, substrate="min")
    a, e = effects(metric, net, x, S / S.max())
    for j, region in enumerate(grid_regions((8, 8), 2)):
        low = x.amin((1, 2, 3), keepdim=True)
        changed = net(torch.where(region, low, x))[:, 0]
        assert_close(e[:, j], net(x)[:, 0] - changed)
        assert_close(a[:, j], (S / S.max())[:, region].sum(1))


def test_constant_maps_predict_no_order():
    net, x, S = linear()
    metric = SingleDeletion(2)
    assert metric.measure(model=net, images=x, saliency=torch.ones_like(S), target=0).tolist() == [0.0, 0.0, 0.0]
    metric.update(model=net, images=x, saliency=S / S.max(), target=1)  # whose logit is always 0
    with pytest.warns(UserWarning, match="leaves out 3 of 3"):
        assert metric.compute().isnan()


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 6, 7), (11,)])
def test_grid_covers_each_pixel_once_in_nearly_equal_patches(size):
    R = grid_regions(size, 3)
    assert len(R) == 3 ** len(size)
    assert (R.sum(0) == 1).all()
    counts = R.flatten(1).sum(1)
    assert counts.max() <= counts.min() * 2 ** len(size)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (12,), (4, 5, 6)])
def test_squares_lie_inside_and_depend_on_the_seed_alone(size):
    R = Infidelity(n=20, side=0.5).regions(size)
    assert set(R.flatten(1).sum(1).tolist()) == {round(0.5 * min(size)) ** len(size)}
    assert torch.equal(R, Infidelity(n=20, side=0.5).regions(size))
    assert not torch.equal(R, Infidelity(n=20, side=0.5, seed=1).regions(size))


def test_each_image_lacks_one_patch_or_none():
    torch.manual_seed(0)
    x = torch.ones(200, 1, 8, 8)
    missing = (without_patch(x, 2) == 0).flatten(1).sum(1)
    assert set(missing.tolist()) == {0, 16}
    assert 20 < int((missing == 0).sum()) < 65  # a fifth of 200


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Infidelity(n=0), "expected n"),
        (lambda: Infidelity(side=1.0), "expected .*side"),
        (lambda: SingleDeletion(1), "expected at least 2 patches"),
        (lambda: SingleDeletion(9).regions((8, 8)), "expected at most 8 patches"),
        (lambda: SingleDeletion(score="accuracy"), "expected .*score"),
    ],
)
def test_wrong_options_are_described(build, message):
    with pytest.raises(ValueError, match=message):
        build()
