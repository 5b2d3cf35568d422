"""A training of a few steps on small pictures, and what the callbacks that watch it leave behind."""

import copy

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.session import session_of
from interpretable_training.report.journal import read_journal

CLASSES, SIDE = 3, 16
BATCHES = 4  # in an epoch of training


def small_network(channels=3, classes=CLASSES, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, classes),
        )


class Module(L.LightningModule):
    """Somebody's own module."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or small_network()

    def forward(self, images):
        return self.network(images)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def pictures(n, seed=0, channels=3, size=(SIDE, SIDE)):
    """Images in [0, 1] and labels that take turns."""
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.arange(n) % CLASSES)


class Keyed(Dataset):
    """Items as dicts, and no list of labels."""

    def __init__(self, data, names=("photo", "kind")):
        self.data, self.names = data, names

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return dict(zip(self.names, self.data[index]))


def loader(n=9, seed=1, batch_size=4, **options):
    return DataLoader(pictures(n, seed), batch_size=batch_size, **options)


class Memory(Logger):
    """Keeps what it is sent; raises what it is told to raise."""

    name, version = "memory", 0

    def __init__(self, refuses=None):
        super().__init__()
        self.refuses, self.numbers, self.pictures, self.alerts = refuses, [], [], []

    def log_metrics(self, metrics, step=None):
        if self.refuses == "metrics" and any(name.startswith("xai/") for name in metrics):
            raise ConnectionError("the service is gone")
        self.numbers.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def steps(self, name):
        return [step for step, metrics in self.numbers if name in metrics]


@logger_adapters.adapter.register(Memory)
class MemoryAdapter(logger_adapters.Adapter):
    def images(self, images, step, epoch, file_type):
        if self.logger.refuses == "images":
            raise ConnectionError("the service is gone")
        self.logger.pictures.append((step, epoch, images))

    def alert(self, title, text):
        self.logger.alerts.append((title, text))


def trainer_of(folder, callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    return L.Trainer(callbacks=callbacks, default_root_dir=folder, **{**quiet, **defaults, **options})


def fit(folder, callbacks, module=None, train=None, val="usual", ckpt_path=None, weights_only=None, **options):
    """Train for three epochs of four steps, each validated on three batches."""
    trainer = trainer_of(folder, callbacks, **options)
    train = loader(4 * BATCHES, 0) if train is None else train
    val = loader() if isinstance(val, str) else val
    trainer.fit(module or Module(), train, val, ckpt_path=ckpt_path, weights_only=weights_only)
    return trainer


def context_of(trainer, callback):
    """The run context of a callback, after a stage."""
    return session_of(trainer).found_context(callback.options)


def record(folder):
    return read_journal(folder / "explanations")


def looks(folder, callback, starts="xai/"):
    """(epoch, step) of each look of a callback that logs numbers."""
    costs = {"xai/seconds"}
    lines = [line for line in record(folder).of("values") if line["callback"] == callback]
    return [(line["epoch"], line["step"]) for line in lines if not costs & {*line["values"]}]


def shown(folder, group="panel"):
    """(epoch, step) of each strip of maps of the first method."""
    lines = [line for line in record(folder).of("maps") if line["group"] == group]
    return [(line["epoch"], line["step"]) for line in lines if line["method"] == lines[0]["method"]]


def failures(folder):
    return [line["reason"] for line in record(folder).of("failure")]


class Notes(L.Callback):
    """Keeps the network of each validation."""

    def __init__(self):
        self.networks = []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.networks.append(copy.deepcopy(pl_module.network).eval())


def of_callback(folder, name):
    lines = [line for line in record(folder).of("values") if line["callback"] == name]
    return [line["values"] for line in lines if "xai/seconds" not in line["values"]]
