"""How a map is computed: shared passes, where the graph starts, in-place layers, chunks, and the errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.attributions import ONE_PASS, toy, toy_images
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import AblationCAM, GradCAM, Gradient, IntegratedGradients, ScoreCAM, explain
from interpretable_training.attribution.core.batching import PIXELS, in_chunks


class Spy(torch.autograd.Function):
    """The identity, which writes down that it was asked for a gradient."""

    @staticmethod
    def forward(ctx, x, log, name):
        ctx.log, ctx.name = log, name
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.log.append(ctx.name)
        return g, None, None


class Spied(nn.Module):
    def __init__(self, log, name):
        super().__init__()
        self.log, self.name = log, name

    def forward(self, x):
        return Spy.apply(x, self.log, self.name)


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of autograd, and refuses `.backward()`."""
    counts = {"grad": 0}
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        counts["grad"] += 1
        return grad(*args, **kwargs)

    def refused(*args, **kwargs):
        raise AssertionError("backward() writes .grad of the parameters")

    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(torch.autograd, "backward", refused)
    return counts


def test_the_graph_starts_at_the_layer_and_never_reaches_parameters():
    net, log = toy(), Tally()
    net.stem.append(Spied(log, "below"))
    net.boom = nn.Sequential(Spied(log, "above"))
    learning = Tally()
    net.drop.register_forward_pre_hook(lambda *_: learning.append([p.requires_grad for p in net.parameters()]))
    GradCAM(layer="block")(net, toy_images())
    assert log == ["above"]
    assert not any(learning[-1])


def test_six_methods_share_one_forward_and_one_backward_pass(calls):
    net, runs = toy(), Tally()
    net.register_forward_hook(lambda *_: runs.append(1))
    methods = [type(method)(layer="block") for method in ONE_PASS]
    maps = explain(methods, net, toy_images())
    assert (len(maps), len(runs), calls["grad"]) == (6, 1, 1)
    for method in methods:
        assert_close(method(net, toy_images()), maps[type(method).__name__.lower()])


def test_several_layers_are_read_in_one_pass(calls):
    net, runs = toy(), Tally()
    net.register_forward_hook(lambda *_: runs.append(1))
    methods = {"both": GradCAM(layer=["stem", "block"]), "stem": GradCAM(layer="stem", normalize="after")}
    maps = explain({**methods, "block": GradCAM(layer="block", normalize="after")}, net, toy_images())
    assert (len(runs), calls["grad"]) == (1, 1)
    assert_close(maps["both"], (maps["stem"] + maps["block"]) / 2)
    alone = GradCAM(layer="stem", normalize="after")(net, toy_images())
    assert_close(maps["stem"], alone)


def test_looking_for_the_layer_is_done_once():
    net, runs = toy(), Tally()
    net.register_forward_hook(lambda _, args, __: runs.append(len(args[0])))
    for _ in range(3):
        GradCAM()(net, toy_images())
    assert runs == [1, 3, 3, 3]


class Inplace(nn.Module):
    """Features, then an activation that may work in place on what the layer returned."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.act, self.head = act, nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.act(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("inplace", "pure"),
    [
        (nn.ReLU(inplace=True), nn.ReLU()),
        (nn.ReLU6(inplace=True), nn.ReLU6()),
        (nn.SiLU(inplace=True), nn.SiLU()),
        (lambda x: F.relu(x, inplace=True), F.relu),
        (torch.relu_, torch.relu),
        (lambda x: x.mul_(2).add_(1), lambda x: x * 2 + 1),
    ],
)
@pytest.mark.parametrize("layer", ["features", "features.0", "features.1", "auto"])
def test_an_activation_in_place_behind_the_layer_changes_no_map(inplace, pure, layer):
    for method in (type(method)(layer=layer) for method in [*ONE_PASS, ScoreCAM(), AblationCAM()]):
        maps = [method(Inplace(act).eval(), toy_images(), 1) for act in (inplace, pure)]
        assert_close(*maps)
        assert maps[0].any()


class InplaceInput(nn.Module):
    """Normalizes the images where they lie."""

    def __init__(self, pure):
        super().__init__()
        self.net, self.pure = toy(), pure

    def forward(self, x):
        return self.net((x - 0.5) / 2 if self.pure else x.sub_(0.5).div_(2))


@pytest.mark.parametrize("method", [GradCAM(), GradCAM(layer="net.block"), Gradient(), ScoreCAM(layer="net.block")])
def test_a_network_that_works_on_the_images_in_place(method):
    images = toy_images()
    maps = method(InplaceInput(pure=False), images)
    assert torch.equal(images, toy_images())
    assert_close(maps, method(InplaceInput(pure=True), images))


class Detached(nn.Module):
    """A backbone that runs without gradients, as in transfer learning."""

    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, x):
        with torch.no_grad():
            A = self.net.block(self.net.stem(x))
        return self.net.head(A.mean((2, 3)))


@pytest.mark.parametrize("method", [GradCAM(), GradCAM(layer="net.block"), GradCAM(layer="net.stem"), Gradient()])
def test_backbone_under_no_grad_gives_the_map_or_an_error(method):
    expected = copy.copy(method)
    object.__setattr__(expected, "layer", getattr(method, "layer", "auto").removeprefix("net."))
    try:
        maps = method(Detached().eval(), toy_images(), 1)
    except (ValueError, RuntimeError):
        return
    assert_close(maps, expected(toy(), toy_images(), 1))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", ["net.block", "net.stem.0", "net.block.1", "auto"])
def test_activation_checkpointing(reentrant, layer):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = toy()

        def forward(self, x):
            for part in (self.net.stem, self.net.block):
                x = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=reentrant)
            return self.net.head(x.mean((2, 3)))

    expected = GradCAM(layer=layer.removeprefix("net."))(toy(), toy_images(), 1)
    try:
        maps = GradCAM(layer=layer)(Checkpointed().eval(), toy_images(), 1)
    except (ValueError, RuntimeError):
        assert reentrant  # it hides the graph: an error is right, a blank map is not
        return
    assert_close(maps, expected)


class Counting(nn.Module):
    """Changes a buffer in a way that leaves its version as it was, and fills one that was empty."""

    def __init__(self):
        super().__init__()
        self.net = toy()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("cache", None)

    def forward(self, x):
        self.seen.data += len(x)
        self.cache = torch.ones(2) if self.cache is None else self.cache
        return self.net(x)


def test_buffers_changed_behind_the_back_of_autograd_come_back():
    net = Counting().eval()
    GradCAM(layer="net.block")(net, toy_images())
    assert float(net.seen) == 0
    assert net.cache is None


class Hungry(nn.Module):
    """Runs out of memory with more than `most` images."""

    def __init__(self, most, kind=torch.OutOfMemoryError):
        super().__init__()
        self.net, self.most, self.kind, self.sizes = toy(), most, kind, Tally()

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.kind("CUDA out of memory. Tried to allocate 2 GiB")
        return self.net(x)


def test_chunks_cover_all_rows_and_are_halved_once():
    for total, size, most in ((10, 4, 2), (4, 4, 2), (4, 32, 2), (1, 1, 1), (7, 3, 9)):
        rows = []

        def run(chunk, rows=rows, most=most):
            if chunk.stop - chunk.start > most:
                raise torch.OutOfMemoryError("out of memory")
            rows.extend(range(chunk.start, chunk.stop))

        in_chunks(run, total, size, torch.zeros(1, 3, 8, 8))
        assert rows == list(range(total)), f"{total} rows in chunks of {size}, memory for {most}"


def test_chunks_are_about_equally_large_by_default(monkeypatch):
    monkeypatch.setitem(PIXELS, "cpu", 4 * 64)  # four images of 8 x 8
    for total, expected in ((9, [3, 3, 3]), (8, [4, 4]), (5, [3, 2]), (0, [])):
        sizes = []
        in_chunks(
            lambda chunk, sizes=sizes: sizes.append(chunk.stop - chunk.start), total, None, torch.zeros(1, 3, 8, 8)
        )
        assert sizes == expected


@pytest.mark.parametrize("chunk_size", [6, 32])
@pytest.mark.parametrize("method", [ScoreCAM, IntegratedGradients])
def test_out_of_memory_halves_the_chunk_and_gives_the_same_map(method, chunk_size):
    options = {"layer": "net.block"} if method is ScoreCAM else {"steps": 6}
    expected = method(**options)(Hungry(1000), toy_images(1), 1)
    net = Hungry(4)
    maps = method(chunk_size=chunk_size, **options)(net, toy_images(1), 1)
    assert max(net.sizes) > 4
    assert_close(maps, expected)


def test_out_of_memory_twice_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"smaller chunk_size.*Tried to allocate 2 GiB"):
        ScoreCAM(layer="net.block", chunk_size=8)(Hungry(1), toy_images(1), 1)
    with pytest.raises(TypeError, match="other"):
        ScoreCAM(layer="net.block", chunk_size=8)(Hungry(1, lambda _: TypeError("other")), toy_images(1), 1)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([[1.0]], (TypeError, ValueError), "as a tensor, got list"),
        (torch.zeros(16, 24), ValueError, r"\(16, 24\)"),
        (torch.zeros(3, 16, 24), (ValueError, RuntimeError), "."),
        (torch.zeros(2, 3, 16, 24, dtype=torch.uint8), TypeError, "floating point images.*uint8"),
        (torch.zeros(0, 3, 16, 24), ValueError, "at least one image"),
        (torch.zeros(2, 3, 16, 24, device="meta"), ValueError, "device cpu, got meta"),
    ],
)
def test_images_that_are_none_are_refused(images, error, words):
    for method in (GradCAM(), Gradient()):
        with pytest.raises(error, match=words):
            method(toy(), images)


def test_a_model_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module as model, got function"):
        GradCAM()(lambda x: x, toy_images())
