"""Two processes see what one would see, and neither waits for the other in vain."""

import os
import socket
from collections import Counter
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from support.watched import Module, failures, fit, loader, pictures, record, small_network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, Subset

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
)
from interpretable_training.metrics import AverageDrop, Insertion, evaluate

KEY = "xai/gradcam/average_drop"
METRICS = {"average_drop": AverageDrop(), "insertion": Insertion(steps=3)}


def everyone(n=6, **options):
    options = {"on_error": "raise", **options}
    return [
        ExplanationLogger(max_images=n, hardest=3, **options),
        InterpretabilityMetrics(metrics=METRICS, max_images=n, **options),
        ExplanationDrift(max_images=n, **options),
        ExplanationAlarms(max_images=n, alike=0.5, border=0.1, **options),
        RandomizationTest(max_images=n, **options),
    ]


class OneRankFails(InterpretabilityMetrics):
    def compute(self, session, context, step):
        if session.trainer.global_rank == 1:
            raise ZeroDivisionError("of the second process alone")
        return super().compute(session, context, step)


class Whole(Module):
    """Is the network itself, so that Lightning's own call of it in a validation is heard too."""

    def __init__(self):
        super().__init__()
        net = small_network()
        del self.network
        self.features, self.head = net[:4], net[4:]

    def forward(self, images):
        return self.head(self.features(images))


class Shard(IterableDataset):
    """Each process has images of its own; the second one none, if it is told so."""

    def __init__(self, empty=False):
        self.empty = empty

    def __iter__(self):
        rank = dist.get_rank()
        return iter([] if rank and self.empty else [pictures(9, 1)[i] for i in range(rank, 9, 2)])


CASES = {
    "even": (Module, lambda: everyone(), {}),
    "odd": (Module, lambda: everyone(5), {}),
    "more processes than images": (Module, lambda: everyone(1), {}),
    "the module itself": (Whole, lambda: everyone(), {}),
    "steps": (Module, lambda: everyone(every_n_steps=1), {"val": None}),
    "mid-epoch": (Module, lambda: everyone(), {"val_check_interval": 1}),
    "indices": (Module, lambda: everyone(images=[4, 2, 0]), {}),
    "a function": (Module, lambda: everyone(images=lambda trainer: pictures(9, 1)[:6]), {}),
    "stream": (Module, lambda: everyone(), {"val": lambda: DataLoader(Shard(), batch_size=4)}),
    "stream of one": (Module, lambda: everyone(), {"val": lambda: DataLoader(Shard(True), batch_size=4)}),
    "one fails": (Module, lambda: [OneRankFails(metrics=METRICS, max_images=6), ExplanationDrift(max_images=4)], {}),
    "one fails, raised": (Module, lambda: [OneRankFails(metrics=METRICS, on_error="raise")], {}),
}


def run(name, folder):
    make_module, make_callbacks, options = CASES[name]
    strategy = DDPStrategy(
        process_group_backend="gloo", cluster_environment=LightningEnvironment(), timeout=timedelta(seconds=90)
    )
    options = {key: value() if callable(value) else value for key, value in options.items()}
    module, callbacks, error = make_module(), make_callbacks(), None
    try:
        trainer = fit(folder / name, callbacks, module, max_epochs=2, devices=2, strategy=strategy, **options)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if name == "even":
            metrics |= trainer.test(module, loader(9, 2), verbose=False)[0]
    except Exception as raised:
        metrics, error = {}, f"{type(raised).__name__}: {raised}"
    return {"weights": module.state_dict(), "metrics": metrics, "error": error}


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ["LOCAL_RANK"] = str(rank)
    torch.save({name: run(name, folder) for name in CASES}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, folder), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return folder, first, second


def network_of(found, name):
    module = CASES[name][0]()
    module.load_state_dict(found[name]["weights"])
    return nn.Sequential(module.features, module.head).eval() if name == "the module itself" else module.network.eval()


GOOD = [name for name in CASES if "fails" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_both_processes_log_the_same(results, name):
    folder, first, second = results
    assert (first[name]["error"], second[name]["error"]) == (None, None)
    ours, theirs = (
        {key: value for key, value in found[name]["metrics"].items() if key.startswith(("xai/gradcam", "test/xai"))}
        for found in (first, second)
    )
    assert ours == pytest.approx(theirs, nan_ok=True)
    assert KEY in ours
    assert failures(folder / name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even", "odd", "more processes than images", "the module itself", "indices"])
def test_values_are_those_of_one_process_on_the_same_images(results, name):
    folder, first, _ = results
    panel = [line for line in record(folder / name).of("maps") if line["group"] == "panel"][-1]
    ids = [int(row["id"]) for row in panel["rows"]]
    assert len(ids) == {"even": 6, "odd": 5, "more processes than images": 1, "indices": 3}.get(name, 6)
    black = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    network, images = network_of(first, name), Subset(pictures(9, 1), ids)
    table = evaluate(network, GradCAM(), METRICS, images, resamples=2, progress=False, **black)
    for metric in METRICS:
        mean = table["gradcam", metric].mean
        assert first[name]["metrics"][f"xai/gradcam/{metric}"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even", "the module itself"])
def test_hardest_images_are_those_of_both_processes(results, name):
    folder, first, _ = results
    hardest = [line for line in record(folder / name).of("maps") if line["group"] == "hardest"][-1]
    images, labels = pictures(9, 1).tensors
    loss = F.cross_entropy(network_of(first, name)(images), labels, reduction="none")
    rows = {int(row["id"]) % 9: row["loss"] for row in hardest["rows"]}  # Lightning repeats an image for an even number
    assert rows == pytest.approx({i: float(loss[i]) for i in loss.topk(len(rows)).indices.tolist()}, rel=1e-5)
    assert len(rows) >= 2


@pytest.mark.slow
def test_the_first_process_writes_alone(results):
    folder, *_ = results
    for name in GOOD:
        found = record(folder / name)
        assert found.missing == []
        assert len(found.of("run")) == {"even": 2, "stream": 2, "stream of one": 2}.get(name, 1)
        events = Counter(
            (line["kind"], line["step"], line["stage"], line.get("callback"), line.get("group"), line.get("method"))
            for line in found.of("values", "maps", "drift")
            if "xai/seconds" not in line.get("values", {})
        )
        assert {*events.values()} == {1}, name
        assert len(list((folder / name).rglob("report.html"))) == 1


@pytest.mark.slow
def test_a_failure_in_one_process_keeps_the_other_from_nothing(results):
    folder, first, second = results
    assert (first["one fails"]["error"], second["one fails"]["error"]) == (None, None)
    assert failures(folder / "one fails") == ["ZeroDivisionError: of the second process alone"] * 2
    assert first["one fails"]["metrics"][KEY] == second["one fails"]["metrics"][KEY] >= 0
    assert "xai/gradcam/similarity_first" in first["one fails"]["metrics"]
    for found in (first, second):
        assert "of the second process alone" in found["one fails, raised"]["error"]
