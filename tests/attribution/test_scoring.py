"""Folded passes equal plain ones, for many families of networks; where folding is not exact they run plain."""

from types import SimpleNamespace

import pytest
import torch
from support.network_families import FAST_FIRST, build, with_statistics
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from interpretable_training.attribution import Gradient, ScoreCAM
from interpretable_training.attribution.core import scoring
from interpretable_training.attribution.core._compat import packs_weights
from interpretable_training.attribution.core.folded_layers import FoldedLayer
from interpretable_training.attribution.core.layer_pairs import Linear
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.models import TinyCNN


@pytest.fixture(autouse=True)
def always_pays(monkeypatch):
    monkeypatch.setattr(scoring, "CALL", -1)
    monkeypatch.setattr(scoring, "SETUP", 0)


def passes(net, images, n=2):
    """The plain output, outputs of n fast passes, and the names of layers with a folded batch norm."""
    with prepare_model(net) as prepared, torch.no_grad():
        plain = prepared.run(images)
        prepared.run_fast(images)  # watched
        fast = [prepared.run_fast(images) for _ in range(n)]
        layers = prepared.scoring.layers or {}
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        return plain, fast, sorted(names[key] for key, layer in layers.items() if layer.norm is not None)


@pytest.mark.parametrize("name", FAST_FIRST)
def test_folded_passes_equal_plain_ones(name):
    net, size = build(name)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    plain, fast, folded = passes(with_statistics(net), images)
    assert_close(fast[0].softmax(1), plain.softmax(1), rtol=0, atol=1e-5)
    assert torch.equal(fast[0], fast[1])
    assert len(folded) == (59 if name == "densenet121" else norms)  # its other norms read concatenated features
    wide, fast, _ = passes(net.double(), images.double())
    assert_close(fast[1], wide, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAST_FIRST)
def test_passes_in_bfloat16_are_near_to_plain_ones(name):
    net, size = build(name)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with_statistics(net)
    with prepare_model(net, scoring=scoring.Scoring(True, torch.bfloat16)) as prepared, torch.no_grad():
        plain, fast = prepared.run(images), prepared.run_fast(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounding = (net(images) - plain).abs().max()
        layers = prepared.scoring.layers.values()
        assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
        assert torch.equal(prepared.run_fast(images), fast)
    assert fast.dtype == torch.float32  # in which probabilities are computed
    assert 0 < (fast - plain).abs().max() < 2 * rounding + 1e-3 * plain.abs().max()
    assert {p.dtype for p in net.parameters()} == {torch.float32}


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv3d": (nn.Conv3d(4, 6, 3, bias=False), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "reflecting": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "same": (nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6, eps=0.1), (2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer_is_folded_exactly(name):
    layer, norm, shape = LAYERS[name]
    body = nn.Sequential(layer, norm)
    net = with_statistics(nn.Sequential(nn.Flatten(), body) if name == "linear" else body).double()
    shape = (*shape, 1, 1) if name == "linear" else shape
    plain, fast, folded = passes(net, torch.randn(shape, generator=torch.Generator().manual_seed(0)).double())
    assert len(folded) == 1
    assert_close(fast[0], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2}, {"padding": 1}, {"groups": 2}])
def test_convolutions_of_one_cell_equal_plain_ones(options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1, **options))
    net.append(nn.Flatten())
    with_statistics(net)
    plain, fast, folded = passes(net, torch.randn(4, 3, 9, 9))
    assert folded == ["0.weight"]
    assert scoring.folding_of(net) == "1 of 1 folded"  # its first pass was equal, and not replaced by a plain one
    assert_close(fast[0], plain)


class Branches(nn.Module):
    """Runs layers in a way that the class says."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other, self.calls = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3), 0


class Shared(Branches):
    def forward(self, x):
        return self.other(self.conv(self.norm(self.conv(x))))


class ReadTwice(Branches):
    def forward(self, x):
        A = self.conv(x)
        return self.norm(A) + A


class NormFirst(Branches):
    def forward(self, x):
        return self.conv(self.norm(x))


class NotNext(Branches):
    def forward(self, x):
        return self.norm(self.conv(x).relu())


class OfTheBatch(Branches):
    def forward(self, x):
        return nn.functional.batch_norm(self.conv(x), None, None, training=True)


@pytest.mark.parametrize("kind", [Shared, ReadTwice, NormFirst, NotNext, OfTheBatch])
def test_other_orders_of_layers_stay_as_they_are(kind):
    torch.manual_seed(0)
    plain, fast, folded = passes(with_statistics(kind()), torch.randn(3, 3, 4, 4))
    assert folded == []
    assert_close(fast[1], plain)


class Changes(Branches):
    """Reads the output of the convolution once more, or not at all, if the first pixel says so."""

    def forward(self, x):
        A = self.conv(x)
        if x[0, 0, 0, 0] > 5:
            return self.norm(A) + A
        return A.sin() if x[0, 0, 0, 0] < -5 else self.norm(A)


@pytest.mark.parametrize("pixel", [9.0, -9.0])
def test_a_pass_that_differs_runs_as_it_is(pixel):
    torch.manual_seed(0)
    net, images = with_statistics(Changes()), torch.randn(3, 3, 4, 4)
    other = images.index_fill(0, torch.tensor([0]), pixel)
    with prepare_model(net) as prepared, torch.no_grad():
        prepared.run_fast(images)
        prepared.run_fast(images)
        assert len(prepared.scoring.layers) == 1
        assert torch.equal(prepared.run_fast(other), net(other.contiguous(memory_format=torch.channels_last)))
        assert scoring._plans[net].refused


def test_written_weights_are_folded_again():
    net, images = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 6, 6)
    with prepare_model(net) as prepared, torch.no_grad():
        prepared.run_fast(images)
        prepared.run_fast(images)
        assert prepared.scoring.layers
        net[0].weight.mul_(3)
        net[1].running_mean.add_(1)
        assert_close(prepared.run_fast(images), prepared.run(images))


def test_hooks_read_what_the_layer_returns():
    net, images, seen = (
        with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
        torch.randn(2, 3, 6, 6),
        [],
    )
    net[0].register_forward_hook(lambda _, args, output: seen.append(output))
    _, _, folded = passes(net, images)
    assert folded == []
    assert all(torch.equal(A[:2], seen[0][:2]) for A in seen[1:])


def test_weights_that_each_pass_computes_are_not_folded():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    plain, fast, folded = passes(with_statistics(nn.Sequential(conv, nn.BatchNorm2d(4))), torch.randn(2, 3, 6, 6))
    assert folded == []
    assert_close(fast[0], plain)


@pytest.mark.parametrize("case", ["train mode", "autocast", "half"])
def test_what_would_not_be_equal_runs_as_it_is(case):
    net, images = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 6, 6)
    net = net.train() if case == "train mode" else net.bfloat16() if case == "half" else net
    images = images.bfloat16() if case == "half" else images
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast")
    with autocast, prepare_model(net, keep_mode=True) as prepared, torch.no_grad():
        prepared.run_fast(images)
        assert not prepared.scoring.layers


def test_small_passes_run_as_they_are(monkeypatch):
    monkeypatch.undo()
    net, images = with_statistics(TinyCNN(num_classes=3)), torch.randn(1, 3, 16, 16)
    with prepare_model(net) as prepared, torch.no_grad():
        fast = prepared.run_fast(images)
        assert torch.equal(fast, net(images.contiguous(memory_format=torch.channels_last)))


def test_maps_are_the_same_the_first_time_and_later():
    """The plan of a network is found in its first pass, which must leave no trace in the numbers."""
    net, images = with_statistics(build("resnet18")[0]), torch.randn(1, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = (ScoreCAM("layer1", chunk_size=32)(net, images, 1) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layers_that_are_not_folded_are_named():
    class Net(Branches):
        def forward(self, x):
            return self.other(self.norm(self.conv(x)))

    net = with_statistics(Net())
    assert scoring.folding_of(net) is None
    passes(net, torch.randn(2, 3, 4, 4))
    assert scoring.folding_of(net) == "1 of 2 folded; not other"


def test_gradients_of_fast_passes_equal_plain_ones():
    net, images = with_statistics(build("tiny")[0]).double(), torch.randn(2, 3, 32, 32).double()
    x = images.clone().requires_grad_()
    gradient = torch.autograd.grad(net(x)[:, 1].sum(), x)[0]
    assert_close(Gradient(reduce="signed_sum")(net, images, 1), gradient.sum(1))


@pytest.mark.skipif(not packs_weights(), reason="this build of torch does not pack weights")
def test_packed_weights_follow_their_parameter():
    conv = nn.Conv2d(64, 64, 3, padding=1)  # large enough to be packed
    layer = FoldedLayer(Linear(torch.conv2d, "bias"), "weight", dict(conv.named_parameters()), packs=True)
    images = torch.randn(1, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        layer.update()
        with torch.no_grad():
            assert_close(layer(torch.conv2d, images, (1, 1), {}), conv(images))
            assert layer.packed is not None
            conv.weight.mul_(2)


def test_outputs_in_objects_are_compared():
    one, two = (SimpleNamespace(logits=torch.full((2, 3), value), classes=3) for value in (1.0, 2.0))
    assert scoring.equal_to_rounding(one, one)
    assert not scoring.equal_to_rounding(one, two)
    assert not scoring.equal_to_rounding(SimpleNamespace(name="none"), SimpleNamespace(name="none"))
