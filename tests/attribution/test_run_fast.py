"""Passes without graph, whose layout is chosen for speed."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution.core.prepared_model import prepare_model


def test_many_passes_are_the_same_in_any_layout():
    """One that flattens by `view` refuses channels last, and runs as always."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 8, 8, generator=generator)

    class Viewing(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).view(len(x), -1))

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    viewing = Viewing(nn.Conv2d(3, 4, 3), nn.Linear(144, 5))
    for net, refuses in ((plain, False), (viewing, True)):
        with prepare_model(net) as prepared, torch.no_grad():
            assert_close(prepared.run_fast(images), net(images))
            assert_close(prepared.run_fast(images), net(images))
            assert bool(prepared.refused) == refuses


def test_other_errors_of_many_passes_are_raised():
    def broken(*_):
        raise RuntimeError("broken")

    net = nn.Conv2d(3, 4, 3)
    net.register_forward_hook(broken)
    with prepare_model(net) as prepared, pytest.raises(RuntimeError, match="broken"):
        prepared.run_fast(torch.randn(2, 3, 8, 8))
