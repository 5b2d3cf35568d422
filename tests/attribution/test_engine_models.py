"""Models as they come: compiled, wrapped, of any dimension, with any output, inside Lightning, in mid-training."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.attributions import METHODS, OF_ATTENTION, ToyCNN, generators, state, toy, toy_images
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, Gradient, ScoreCAM, explain


def plain():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()) for c in (3, 6)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def compile_part(net, backend):
    net[0] = torch.compile(net[0], backend=backend)
    return net


def compile_last(net, backend):
    net[1] = torch.compile(net[1], backend=backend)
    return net


def compile_in_place(net, backend):
    net.compile(backend=backend)
    return net


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "compiled",
    [lambda net, b: torch.compile(net, backend=b), compile_part, compile_last, compile_in_place],
    ids=["whole", "first part", "last part", "in place"],
)
def test_compiled_network_gives_the_same_maps_without_recompiling(compiled, backend):
    torch._dynamo.reset()
    methods = {"auto": GradCAM(), "named": GradCAM(layer="1"), "inner": GradCAM(layer="1.1"), "gradient": Gradient()}
    methods["score"] = ScoreCAM(layer="1")
    expected, images = explain(methods, plain(), toy_images()), toy_images()
    net = compiled(plain(), backend)
    with torch.no_grad():
        logits = net(images)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs
    for _ in range(2):
        for name, method in methods.items():
            assert_close(method(net, images), expected[name], msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        assert_close(net(images), logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.fixture
def gloo():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("gloo")
def test_distributed_data_parallel_is_unwrapped_and_still_trains():
    ends = []
    for watch in (False, True):
        net = nn.parallel.DistributedDataParallel(toy().train())
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        torch.manual_seed(1)
        for _ in range(3):
            loss = net(toy_images()).square().mean()
            if watch:
                assert_close(GradCAM()(net, toy_images()), GradCAM()(copy.deepcopy(net.module), toy_images()))
                Gradient()(net, toy_images())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends))


@dataclass
class Out:
    logits: torch.Tensor
    features: torch.Tensor


class ModelOutput(OrderedDict):
    """A dict with attributes, as transformers return."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = toy(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda y: {"features": y * 0, "logits": y}, None),
        (lambda y: {"out": y, "aux": y * 0}, None),
        (lambda y: {"anything": y}, None),
        (lambda y: {"scores": y, "logits": y * 0}, "scores"),
        (lambda y: (y, y * 0), None),
        (lambda y: (y * 0, y), 1),
        (lambda y: [y], None),
        (lambda y: [y * 0, y], -1),
        (lambda y: Out(y, y * 0), None),
        (lambda y: Out(y * 0, y), "features"),
        (lambda y: ModelOutput(loss=None, logits=y, hidden=(y * 0,)), None),
        (lambda y: ModelOutput(logits=y * 0, hidden=(y,)), lambda out: out.hidden[0]),
        (lambda y: SimpleNamespace(y=y), "y"),
        (lambda y: {"head": {"scores": (y,)}}, lambda out: out["head"]["scores"][0]),
        (lambda y: y[:, :, None], lambda y: y.mean(2)),
    ],
)
def test_logits_are_found_in_any_output(wrap, output):
    methods = {name: METHODS[name] for name in ("gradcam", "cam", "scorecam", "gradient", "captumattribution")}
    maps = explain(methods, Wrapped(wrap).eval(), toy_images(), output=output)
    for name, expected in explain(methods, toy(), toy_images()).items():
        assert_close(maps[name], expected)


@pytest.mark.parametrize(
    ("wrap", "output", "error", "words"),
    [
        (lambda y: {"a": y, "b": y}, None, TypeError, r"keys \['a', 'b'\].*output="),
        (lambda y: {"a": y, "b": y}, "c", TypeError, r"keys \['a', 'b'\]"),
        (lambda y: y[:, :, None], None, ValueError, r", 4, 1\).*output="),
        (lambda y: None, None, TypeError, "NoneType"),
    ],
)
def test_an_output_without_logits_is_described(wrap, output, error, words):
    with pytest.raises(error, match=words):
        GradCAM()(Wrapped(wrap).eval(), toy_images(), output=output)


def test_a_callable_target_scores_the_output():
    for name in ("gradcam", "scorecam", "ablationcam", "gradient", "smoothgrad", "opticam"):
        maps = METHODS[name](toy(), toy_images(), lambda out: out[:, 2])
        assert_close(maps, METHODS[name](toy(), toy_images(), 2))


def fitting(method, shape):
    """The method with baselines of the images' shape, where it has some."""
    if getattr(method, "baselines", None) is not None:
        return replace(method, baselines=torch.zeros(2, *shape))
    return replace(method, cam=fitting(method.cam, shape)) if hasattr(method, "cam") else method


@pytest.mark.parametrize("name", [n for n in METHODS if n not in OF_ATTENTION])
@pytest.mark.parametrize(("dims", "size"), [(1, (32,)), (2, (24, 16)), (3, (8, 8, 12))])
def test_signals_images_and_volumes_of_any_channels(name, dims, size):
    for channels in (1, 3, 11):
        torch.manual_seed(0)
        method = fitting(METHODS[name], (channels, *size))
        maps = method(ToyCNN(channels, dims).eval(), toy_images(1, channels, size), 1)
        assert maps.shape == (1, *size)
        assert maps.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_network_built_in_inference_mode(name):
    with torch.inference_mode():
        net = toy(name)
        maps = METHODS[name](net, toy_images())
    assert_close(maps, METHODS[name](toy(name), toy_images()))
    assert_close(METHODS[name](net, toy_images()), maps)
    assert all(p.is_inference() for p in net.parameters())


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (4, ValueError, "from 0 to 3.*4 logits"),
        (-1, ValueError, "from 0 to the number of logits - 1, got -1"),
        (torch.tensor([0, 1]), ValueError, "2 targets for 3 images"),
        (torch.rand(3), TypeError, "class indices"),
        ("best", ValueError, "'best'"),
        ("topk:9", ValueError, "K up to 4"),
        (lambda out: out, ValueError, r"one score per image.*, 4\)"),
        ([[0, 1], [2]], (TypeError, ValueError), "target|class|length"),
        ([[[0]], [[1]], [[2]]], (TypeError, ValueError), "target|class"),
    ],
)
def test_targets_that_are_none_are_refused(target, error, words):
    for method in (GradCAM(), Gradient()):
        with pytest.raises(error, match=words):
            method(toy(), toy_images(), target)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Watcher(L.Callback):
    """Explains in every hook that has a batch, in several ways, and says under which rules it ran."""

    def __init__(self, keep_mode=False):
        self.keep_mode, self.inference, self.maps = keep_mode, [], []

    def watch(self, pl_module, images):
        before, rng = state(pl_module), generators()
        self.inference.append(torch.is_inference_mode_enabled())
        methods = [GradCAM(), ScoreCAM(), METHODS["smoothgrad"]]
        self.maps.append(explain(methods, pl_module, images, keep_mode=self.keep_mode)["gradcam"])
        assert state(pl_module) == before
        assert generators() == rng

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.watch(pl_module, batch[0])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.watch(pl_module, batch[0])

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.watch(pl_module, toy_images(2))

    def on_after_backward(self, trainer, pl_module):
        self.watch(pl_module, toy_images(2))


def fit(callbacks, **options):
    L.seed_everything(0, verbose=False)
    data = DataLoader(TensorDataset(toy_images(12), torch.arange(12) % 4), 2, shuffle=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False, **quiet, **options}
    trainer, module = L.Trainer(callbacks=callbacks, **options), Module()
    trainer.fit(module.train(), data, DataLoader(data.dataset, 4))
    return trainer, module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep_mode", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_watched_training_ends_bit_equal(precision, keep_mode):
    options = {"accumulate_grad_batches": 3, "val_check_interval": 2, "precision": precision}
    watcher = Watcher(keep_mode)
    ends = []
    for callbacks in ([], [watcher]):
        trainer, module = fit(callbacks, **options)
        moments = [s[key] for s in trainer.optimizers[0].state.values() for key in ("exp_avg", "exp_avg_sq")]
        ends.append([*module.state_dict().values(), *moments])
    assert len(watcher.maps) > 20
    assert all(maps.isfinite().all() for maps in watcher.maps)
    different = [a.shape for a, b in zip(*ends) if not torch.equal(a, b)]
    assert different == []


@pytest.mark.filterwarnings("ignore")
def test_validate_runs_in_inference_mode_and_the_map_is_the_same():
    watcher = Watcher()
    trainer, module = fit([], max_epochs=1)
    trainer.callbacks.append(watcher)
    trainer.validate(module, DataLoader(TensorDataset(toy_images(), torch.arange(3)), 3), verbose=False)
    assert watcher.inference == [True]
    assert_close(watcher.maps[0], GradCAM()(module.net, toy_images()))
