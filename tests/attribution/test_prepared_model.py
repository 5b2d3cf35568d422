"""Test passes of a prepared model: their memory layout, their errors, and the caches of the model."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import Gradient
from interpretable_training.attribution.core.prepared_model import prepare_model


def test_run_fast_equals_forward_in_any_layout():
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
            assert bool(prepared.scoring.refused) == refuses


def test_run_fast_raises_errors_of_the_model():
    def broken(*_):
        raise RuntimeError("broken")

    net = nn.Conv2d(3, 4, 3)
    net.register_forward_hook(broken)
    with prepare_model(net) as prepared, pytest.raises(RuntimeError, match="broken"):
        prepared.run_fast(torch.randn(2, 3, 8, 8))


def test_call_restores_caches_of_eval_mode():
    """LeViT keeps biases that it looked up until it trains again: those of an explanation must not outlive it."""
    net = timm.create_model("levit_128s", pretrained=False, num_classes=3).train()
    caches = [m.attention_bias_cache for m in net.modules() if hasattr(m, "attention_bias_cache")]
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert caches
    Gradient()(net, images, 1)
    assert not any(caches)
    net.eval()(images)
    contents = [dict(cache) for cache in caches]
    Gradient()(net, images, 1)
    for cache, before in zip(caches, contents):
        assert cache.keys() == before.keys()
        assert all(cache[key] is before[key] for key in before)
