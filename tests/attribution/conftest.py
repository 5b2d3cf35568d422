"""Models whose maps are known by hand, in double precision."""

import pytest
import torch
from support.networks import Function, GapLinear
from torch import Tensor, nn


@pytest.fixture
def function():
    return Function


@pytest.fixture
def gap_linear():
    def make(W, b=None, hidden: bool = False) -> GapLinear:
        W = torch.as_tensor(W, dtype=torch.float64)
        b = torch.zeros(len(W), dtype=torch.float64) if b is None else torch.as_tensor(b, dtype=torch.float64)
        return GapLinear(W, b, hidden)

    return make


@pytest.fixture
def linear(function):
    """y = W x of flattened images; W (N, C * H * W)."""

    def make(W) -> nn.Module:
        W = torch.as_tensor(W, dtype=torch.float64)
        return function(lambda x: x.flatten(1) @ W.T)

    return make


@pytest.fixture(name="W")
def weights() -> Tensor:
    """Weights of 3 classes for 4 channels, of both signs."""
    return torch.tensor([[1.0, -2, 0.5, 3], [-1, 1, 2, -0.5], [0.5, 0.25, -1, 1]], dtype=torch.float64)


@pytest.fixture
def b() -> Tensor:
    return torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


@pytest.fixture
def features() -> Tensor:
    """Features A >= 0, (2, 4, 2, 3)."""
    return torch.rand(2, 4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 1])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def baselines() -> Tensor:
    return torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def square(function) -> nn.Module:
    """y = sum of x^2 / 2, with the gradient x."""
    return function(lambda x: x.square().flatten(1).sum(1) / 2)


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=[1, 2, 3], ids=["1d", "2d", "3d"])
def case(request):
    """A network without a closed form for 1, 2 and 3 axes: features "0" (2, 4, 3, ...) of images (2, 2, 6, ...)."""
    return _network(request.param)


@pytest.fixture
def network() -> nn.Module:
    """The same in two dimensions, for `images`: features "0" (2, 4, 4, 4)."""
    return _network(2, 8)[0]


def _network(axes: int, side: int = 6) -> tuple[nn.Module, Tensor]:
    Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    with torch.random.fork_rng():
        torch.manual_seed(axes)
        body = nn.Sequential(Conv(2, 4, 3, 2, 1), nn.ReLU())
        head = nn.Sequential(Conv(4, 3, 3, 1, 1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * (side // 2) ** axes, 3))
        x = torch.randn(2, 2, *[side] * axes, dtype=torch.float64)
    return nn.Sequential(body, head).double(), x


@pytest.fixture
def activations():
    """A and dA of the layer "0" of a network, one image at a time."""

    def find(network: nn.Module, images: Tensor, target) -> tuple[Tensor, Tensor]:
        A = network[0](images).detach().requires_grad_()
        rows = [network[1](A[i : i + 1])[0, c] for i, c in enumerate(target)]
        return A.detach(), sum(torch.autograd.grad(y, A)[0] for y in rows)

    return find
