import pytest
import torch

from interpretable_training.models import CAStream, TinyCNN


@pytest.fixture
def tiny():
    """A CA-Stream on a small network whose batch norm has seen something, in double precision."""

    def make(channels=3, **kwargs):
        torch.manual_seed(0)
        backbone = TinyCNN(3, channels=channels, width=4)
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        for _ in range(6):  # one for each batch norm behind another
            backbone(torch.randn(8, channels, 32, 32))
        return CAStream(backbone.double(), **kwargs)

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def averaging():
    """Turn the last step of a stream into average pooling: q = 0, W = 1, b = 0, so that every score is 0."""

    def make(net):
        with torch.no_grad():
            net.stream.query.zero_()
            torch.nn.init.eye_(net.stream.blocks[-1].out.weight)
            net.stream.blocks[-1].out.bias.zero_()
        return net

    return make
