"""Pictures in loggers of pytorch_lightning, in subclasses, and in loggers that only wrap one, all read back."""

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.watched import loader, small_network

from interpretable_training.callbacks import ExplanationLogger
from interpretable_training.report.journal import read_journal

pl = pytest.importorskip("pytorch_lightning")
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger  # noqa: E402
from pytorch_lightning.loggers.logger import Logger  # noqa: E402


class Other(pl.LightningModule):
    """A module of a project on pytorch_lightning."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Wrapper(Logger):
    """Holds a logger and passes everything on."""

    def __init__(self, logger):
        super().__init__()
        self.inner = logger

    name = property(lambda self: self.inner.name)
    version = property(lambda self: self.inner.version)

    def log_metrics(self, metrics, step=None):
        self.inner.log_metrics(metrics, step)

    def log_hyperparams(self, params, *args, **kwargs):
        self.inner.log_hyperparams(params, *args, **kwargs)

    def finalize(self, status):
        self.inner.finalize(status)


class Subclass(TensorBoardLogger):
    """A project's own."""


def fit(folder, loggers):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [ExplanationLogger(max_images=3, hardest=0, on_error="raise")]
    trainer = pl.Trainer(max_epochs=2, logger=loggers, callbacks=callbacks, default_root_dir=folder, **quiet)
    trainer.fit(Other(), loader(8, 0), loader())


def panels(folder, method="gradcam"):
    """The contact sheets on disk are one for each explanation step."""
    lines = read_journal(next(folder.rglob("journal.jsonl")).parent).of("maps")
    return [line["step"] for line in lines if line["method"] == method]


def tensorboard_images(folder, tag):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images(tag)]


def test_loggers_of_pytorch_lightning_get_all_pictures(tmp_path, offline_wandb):
    board, wrapped = Subclass(tmp_path, name="board"), TensorBoardLogger(tmp_path, name="wrapped")
    fit(tmp_path, [board, WandbLogger(save_dir=tmp_path), Wrapper(wrapped), CSVLogger(tmp_path)])
    run, steps = offline_wandb(), panels(tmp_path)
    assert steps == [2, 4]

    rows = [row for row in run.rows if "xai/gradcam" in row]
    assert [row["trainer/global_step"] for row in rows] == [1, 3]  # as Lightning files its own values
    assert [row["trainer/global_step"] for row in run.rows if "val/loss" in row] == [1, 3]
    media = [file for row in rows for file, _ in run.images(row, "xai/gradcam")]
    assert len(media) == 6
    seen = [np.asarray(Image.open(file).convert("RGB"), int) for file in media]
    for logger in (board, wrapped):
        for i in range(3):
            shown = tensorboard_images(logger.log_dir, f"xai/gradcam/{i}")
            assert [step for step, _ in shown] == [1, 3]
            for picture, expected in zip((p for _, p in shown), seen[i::3]):
                assert np.abs(np.asarray(picture, int) - expected).mean() < 16  # JPEG of a small picture
    line = dict(map(tuple, read_journal(next(tmp_path.rglob("journal.jsonl")).parent).of("run")[0]["probe"]))
    assert line["pictures"] == (
        "in the folder explanations; sent to Subclass, WandbLogger, Wrapper; CSVLogger gets numbers only"
    )


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_command_line_of_either_package_takes_callbacks(tmp_path, package):
    """In a process of its own, which imports only one of the packages before its command line reads the callbacks."""
    (tmp_path / "train.py").write_text(
        textwrap.dedent(f"""
        import torch
        import {package} as pl
        from {package}.cli import LightningCLI
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset

        class Net(pl.LightningModule):
            def __init__(self, width: int = 4):
                super().__init__()
                layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
                self.network = nn.Sequential(*layers)
            def forward(self, images):
                return self.network(images)
            def training_step(self, batch, batch_idx):
                return nn.functional.cross_entropy(self(batch[0]), batch[1])
            def validation_step(self, batch, batch_idx):
                self.log("val/loss", self.training_step(batch, batch_idx))
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        class Data(pl.LightningDataModule):
            def train_dataloader(self):
                return DataLoader(TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 2), 4)
            val_dataloader = train_dataloader

        LightningCLI(Net, Data)
    """)
    )
    words = [sys.executable, "train.py", "fit", "--trainer.max_epochs=1", "--trainer.logger=false"]
    for name in ("ExplanationLogger", "InterpretabilityMetrics"):
        words += [f"--trainer.callbacks+=interpretable_training.callbacks.{name}", "--trainer.callbacks.max_images=2"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert list(tmp_path.rglob("panel-epoch0000*.png"))
    assert not list(tmp_path.glob("report*.html"))
