"""The metrics of a Lightning run, written where a local sweep reads them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from .metric import FILE


class SweepReport(L.Callback):
    """Writes what was logged after each validation; does nothing where no sweep started the run.

    `interpretable-training fit` has it by itself. Metrics whose names begin with "train", and all where nothing is
    validated, are written at the end of the epoch.
    """

    def __init__(self) -> None:
        self.path = os.environ.get(FILE)
        self.validated = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = True
            self.write(trainer, lambda name: not name.startswith("train"))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write(trainer, lambda name: name.startswith("train") or not self.validated)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write(trainer, lambda name: True)

    def write(self, trainer: L.Trainer, wanted: Callable[[str], bool]) -> None:
        """Add a line."""
        if not self.path:
            return
        logged = trainer.callback_metrics  # asked for by all ranks, because they may have to sync
        row = {k: v.item() for k, v in logged.items() if isinstance(v, torch.Tensor) and v.numel() == 1 and wanted(k)}
        if row and trainer.is_global_zero:
            with Path(self.path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
