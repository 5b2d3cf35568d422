import pytest
import torch
from torch import nn

from interpretable_training.attribution import RandomMap, degenerate


@pytest.fixture
def blind():
    """A network that is never asked."""

    def fail(x):
        raise AssertionError("the network was run")

    module = nn.Linear(1, 1)
    module.forward = fail
    return module


@pytest.fixture
def pictures():
    return torch.randn(6, 3, 20, 30, generator=torch.Generator().manual_seed(0))


def test_random_map_depends_on_image_and_seed_only(blind, pictures):
    target = torch.zeros(6, dtype=torch.long)
    maps = RandomMap()(blind, pictures, target)
    assert maps.shape == (6, 20, 30)
    assert maps.dtype == torch.float32
    order = torch.tensor([4, 2, 0])
    assert torch.equal(RandomMap()(blind, pictures[order], target[:3]), maps[order])
    assert torch.equal(RandomMap()(blind, pictures, target + 3), maps)
    assert torch.equal(RandomMap(0)(blind, pictures.clone(), target), maps)
    other = RandomMap(1)(blind, pictures, target)
    assert all(not torch.equal(a, b) for a, b in zip(maps, other))


def test_random_maps_of_images_are_uncorrelated(blind, pictures):
    maps = RandomMap()(blind, pictures, torch.zeros(6, dtype=torch.long)).flatten(1)
    off = torch.corrcoef(maps)[~torch.eye(6, dtype=torch.bool)]
    assert off.abs().max() < 4 / 600**0.5


def test_random_map_is_uniform(blind, pictures):
    """Mean 1/2, variance 1/12, and a tenth of them in each tenth."""
    S = RandomMap()(blind, pictures, torch.zeros(6, dtype=torch.long)).flatten()
    assert abs(float(S.mean()) - 1 / 2) < 4 * (1 / 12 / len(S)) ** 0.5
    assert abs(float(S.var()) - 1 / 12) < 0.01
    assert (torch.histc(S, 10, 0, 1) / len(S) - 0.1).abs().max() < 4 * (0.09 / len(S)) ** 0.5
    assert S.min() >= 0
    assert S.max() < 1


def test_random_map_leaves_generators_alone(blind, pictures):
    state = torch.get_rng_state()
    RandomMap(5)(blind, pictures, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2, 1, 9), (2, 4, 3, 5, 7), (1, 3, 1, 2)])
def test_random_map_of_signals_and_volumes(blind, shape):
    x = torch.zeros(shape)
    S = RandomMap()(blind, x, 0)
    assert S.shape == (shape[0], *shape[2:])
    assert not degenerate(S).any()


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_random_map_accepts_any_seed(blind, pictures, seed):
    assert RandomMap(seed)(blind, pictures, 0).isfinite().all()
