"""No callback that watches changes the training by one bit, wherever Lightning puts it."""

import json
import os
import pickle
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from support.every_callback import WATCHING
from support.families import few
from support.observed_training import Small, loaders, small_network, trainers, verify

from interpretable_training.modules import Classifier
from interpretable_training.testing import verify_observer

# An alarm with a threshold of nothing warns all the time.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def compiled(**options):
    """A network that runs as a compiled graph from its first step on."""
    torch._dynamo.reset()
    return Small(torch.compile(small_network(), **options))


def frozen():
    """A backbone that does not learn: one batch norm still counts, the other one is in eval mode."""
    module = Small(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), small_network()))
    module.network[:2].requires_grad_(False)
    module.network[2][:2].requires_grad_(False).eval()
    return module


def stochastic():
    """Dropout of every kind."""
    dropout = [torch.nn.Dropout2d(0.2), torch.nn.RReLU(), torch.nn.AlphaDropout(0.1)]
    return Small(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), *dropout, small_network()))


class ByHand(Small):
    """Optimizes by itself, and steps every other batch."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def averaging():
    return EMAWeightAveraging(decay=0.9)


def stopping():
    return EarlyStopping("val/loss", patience=1)


# Name -> arguments of `verify`.
CASES = {
    "plain": {"stages": ("fit", "validate", "test"), "logger": True},
    "accumulation": {"accumulate_grad_batches": 4},
    "mid-epoch": {"val_check_interval": 2, "others": [stopping]},
    "accumulation and mid-epoch": {"accumulate_grad_batches": 4, "val_check_interval": 2},
    "bf16": {"precision": "bf16-mixed"},
    "clipping": {"gradient_clip_val": 0.1},
    "EMA, mid-epoch": {"others": [averaging], "val_check_interval": 2, "accumulate_grad_batches": 2},
    "SWA": {"others": [lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1)]},
    "compiled": {"make_module": lambda: compiled(backend="aot_eager")},
    "frozen": {"make_module": frozen},
    "dropout": {"make_module": stochastic},
}
MORE = {
    "true bf16": {"precision": "bf16-true"},
    "EMA": {"others": [averaging]},
    "weight averaging": {"others": [WeightAveraging], "num_sanity_val_steps": 0},
    "no validation": {"limit_val_batches": 0, "others": []},
    "by hand": {"make_module": ByHand, "val_check_interval": 3},
    "own module": {"make_module": lambda: Classifier(small_network(), 3)},
    "machine code": {"make_module": compiled},
}


@pytest.fixture(autouse=True)
def files_stay(monkeypatch, tmp_path):
    keep_files(monkeypatch, tmp_path)


def keep_files(monkeypatch, folder):
    """Let `verify_observer` write below the folder of the test, for `check_that_all_looked`."""
    keep = SimpleNamespace(TemporaryDirectory=lambda: nullcontext(folder))
    monkeypatch.setattr("interpretable_training.testing.verify.tempfile", keep)


def everyone():
    return [make() for make in WATCHING.values()]


def check_that_all_looked(folder, groups=("panel", "hardest")):
    """Else it is easy to change nothing."""
    lines = [json.loads(line) for path in folder.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    kinds = {line["kind"] for line in lines}
    assert set(groups) <= {line.get("group") for line in lines}
    assert {"maps", "values", "passport", "drift", "alarm", "randomization", "shortcuts", "cluster"} <= kinds
    assert "failure" not in kinds


@pytest.mark.parametrize("case", few([*CASES, *MORE], "EMA, mid-epoch"))
def test_all_callbacks_together_change_nothing(tmp_path, case):
    verify(tmp_path, everyone, **{**CASES, **MORE}[case]).raise_if_different()
    check_that_all_looked(tmp_path, ["panel"] if case == "no validation" else ["panel", "hardest"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", WATCHING)
def test_each_callback_changes_nothing(tmp_path, name, case):
    verify(tmp_path, WATCHING[name], **CASES[case]).raise_if_different()


@pytest.mark.parametrize(
    ("every_n_train_steps", "writers"),
    [
        (4, list),
        pytest.param(4, everyone, marks=pytest.mark.slow),
        pytest.param(None, list, marks=pytest.mark.slow),
        pytest.param(None, everyone, marks=pytest.mark.slow),
    ],
)
def test_nothing_changes_in_a_training_resumed_from_a_checkpoint(tmp_path, writers, every_n_train_steps):
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=every_n_train_steps)
    make = trainers(tmp_path, lambda: keeper, enable_checkpointing=True, max_epochs=1)
    make(writers()).fit(Small(), *loaders())
    report = verify(tmp_path, everyone, ckpt_path=keeper.best_model_path)
    report.raise_if_different()
    check_that_all_looked(tmp_path)


class Spoils(L.Callback):
    """Disturbs the second process alone."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_rank == 1:
            torch.rand(1)


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ["LOCAL_RANK"] = str(rank)

    def make_trainer(callbacks):
        strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())
        options = {"devices": 2, "strategy": strategy, "val_check_interval": 2, "accumulate_grad_batches": 2}
        return trainers(folder, **options)(callbacks)

    keep_files(pytest.MonkeyPatch(), folder)
    reports = [verify_observer(make_trainer, Small, loaders, callbacks) for callbacks in (everyone, Spoils)]
    with open(f"{folder}/{rank}.pkl", "wb") as file:
        pickle.dump(reports, file)


@pytest.mark.slow
def test_nothing_changes_on_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        watched, spoiled = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        watched.raise_if_different()
        check_that_all_looked(tmp_path)
        first = spoiled.differences[0]
        assert (first.rank, first.kind, first.name) == (1, "random generator", "torch")
        assert str(first).startswith("rank 1, after step 0 (epoch 0, batch 0) in on_train_batch_end")
