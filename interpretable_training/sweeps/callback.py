"""Callback that writes the metrics of a Lightning run for a local sweep."""

import os
from collections.abc import Callable

import lightning as L
import torch

from .metric import FILE, append_line


class SweepReport(L.Callback):
    """Write logged metrics after each validation; do nothing where no sweep started the run.

    >>> SweepReport().path is None  # outside of a sweep
    True

    `interpretable-training fit` adds it by itself. Metrics whose names begin with "train" are written at the end of the
    epoch, and so are all metrics of an epoch without validation.
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
        """Append the wanted metrics as a line."""
        if not self.path:
            return
        logged = trainer.callback_metrics  # read on all ranks, because metrics may have to sync
        row = {k: v.item() for k, v in logged.items() if isinstance(v, torch.Tensor) and v.numel() == 1 and wanted(k)}
        if row and trainer.is_global_zero:
            append_line(self.path, row)
