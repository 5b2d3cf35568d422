"""Models whose scores are known by hand, in double precision, and a count of the images they see."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from interpretable_training.metrics.core.rescoring import scored_batch
from support.tally import Tally


class Scored(nn.Module):
    """Logits (B, 2) whose softmax is (1 - p, p) for `p = probability(x)`; counts the images it has seen."""

    def __init__(self, probability: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.probability = probability
        self.sizes = Tally()

    @property
    def seen(self) -> int:
        return sum(self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        p = self.probability(x)
        return torch.stack([(1 - p).log(), p.log()], 1)


class Function(nn.Module):
    """A function of the images as a model; counts the images it has seen and keeps the passes' sizes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.sizes = Tally()

    @property
    def seen(self) -> int:
        return sum(self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.function(x)


@pytest.fixture
def scored():
    return Scored


@pytest.fixture
def function():
    return Function


@pytest.fixture
def constant(scored):
    """p is 0.3 whatever the image."""
    return scored(lambda x: torch.full((len(x),), 0.3, dtype=torch.float64))


@pytest.fixture
def mean(function):
    """Class 1 has the mean of the image as its logit, class 0 has 0."""
    return function(lambda x: torch.stack([0 * x.flatten(1).mean(1), x.flatten(1).mean(1)], 1))


@pytest.fixture
def network() -> nn.Module:
    """A network without a closed form, for images (B, 3, any, any): 4 classes, batch norm, dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8, 4),
        ).double()
        nn.init.normal_(net[-1].weight, std=2.0)
        net(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def saliency() -> Tensor:
    return torch.rand(5, 12, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture
def curves():
    """The curves of a metric for a batch, by kind."""

    def find(metric, *args, **facts):
        with scored_batch(*args, **facts) as scored:
            return metric.curves(scored)

    return find


@pytest.fixture
def delta():
    """A map that is 1 at one pixel and 0 elsewhere, (1, H, W)."""

    def make(size: tuple[int, ...], pixel: int) -> Tensor:
        S = torch.zeros(1, *size, dtype=torch.float64)
        S.flatten(1)[:, pixel] = 1
        return S

    return make
