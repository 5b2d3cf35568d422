"""Compiled passes equal plain ones, are made for shapes that come often, and are refused where they differ."""

import pytest
import torch
from support.network_families import FAMILIES, build, with_statistics
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution.core import compiled_passes
from interpretable_training.attribution.core.compiled_passes import CompiledPasses
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.attribution.core.scoring import Scoring


def run_often(net, images, n=3, dtype=None):
    """Outputs of n fast passes, and what is compiled."""
    compiled = CompiledPasses()
    with prepare_model(net, scoring=Scoring(True, dtype, compiled)) as prepared, torch.no_grad():
        return [prepared.run_fast(images) for _ in range(n)], compiled


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(compiled_passes, "AFTER", 2)


@pytest.fixture
def pretended(monkeypatch):
    """A compiler that returns what it is told to."""
    made = []

    def pretend(module, dynamic):
        made.append(module)
        return made.answer(module)

    class Made(list):
        answer = staticmethod(lambda module: lambda images: module(images) + 1e-7)

    made = Made()
    monkeypatch.setattr(torch, "compile", pretend)
    return made


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_shape_is_compiled_once_it_came_often(pretended):
    net = tiny()
    run_often(net, X, 1)
    assert pretended == []
    outputs, compiled = run_often(net, X, 4)
    assert pretended == [net]
    assert compiled.fact() == "1 shapes compiled in 0 s"
    assert torch.equal(outputs[2], net(X.contiguous(memory_format=torch.channels_last)) + 1e-7)
    assert torch.equal(outputs[3], outputs[2])


def test_output_that_differs_is_refused(pretended):
    pretended.answer = lambda module: lambda images: module(images) + 1
    net = tiny()
    outputs, compiled = run_often(net, X, 4)
    assert compiled.fact() == "not compiled, because its output differs"
    assert len(pretended) == 1
    for output in outputs:
        assert_close(output, net(X))


def test_an_error_of_the_compiler_is_told(pretended):
    def answer(module):
        def fail(images):
            raise RuntimeError("no compiler\n found")

        return fail

    pretended.answer = answer
    net = tiny()
    outputs, compiled = run_often(net, X, 4)
    assert compiled.fact() == "not compiled, because RuntimeError: no compiler found"
    assert_close(outputs[-1], net(X))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_passes_equal_plain_ones(name):
    net, size = build(name)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain = with_statistics(net)(images).detach()
    outputs, compiled = run_often(net, images)
    assert compiled.refused == ""
    assert len(compiled.ready) == 1
    assert_close(outputs[-1].softmax(1), plain.softmax(1), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_passes_in_bfloat16_are_near_to_plain_ones():
    net, size = build("resnet18")
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain = net.eval()(images).detach()
    outputs, compiled = run_often(net, images, dtype=torch.bfloat16)
    assert len(compiled.ready) == 1
    assert 0 < (outputs[-1] - plain).abs().max() < 0.03 * plain.abs().max()
