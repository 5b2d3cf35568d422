"""Draw loss and accuracy of every epoch in one picture next to the log."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from interpretable_training.callbacks.watching.run_journal import run_folder
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.report.value_readers import mapping_of, read_count, read_number
from interpretable_training.visual import draw_curves


class TrainingCurves(L.Callback):
    """Write `curves.png` into the logger's folder when training ends, also when it is interrupted or resumed.

    >>> TrainingCurves().state_dict()
    {'epochs': {}}
    """

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}  # epoch -> logged values
        self.folder: Path | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # All ranks have to call `run_folder`; after an exception some of them are gone.
        self.folder = run_folder(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.collect(trainer, "val/")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.collect(trainer, "train/")

    def collect(self, trainer: L.Trainer, prefix: str) -> None:
        """Store the values just logged; each split in a separate hook, so that no old value is stored twice."""
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        self.epochs.setdefault(trainer.current_epoch, {}).update(logged)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.draw(trainer)

    def draw(self, trainer: L.Trainer) -> None:
        """Write the picture, if anything was logged."""
        rows = [{"epoch": epoch, **logged} for epoch, logged in sorted(self.epochs.items()) if logged]
        if self.folder is None or not rows or getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draw_curves(rows, self.folder / "curves.png")
        except (OSError, ValueError) as error:  # an error of the picture does not end a training
            rank_zero_warn(f"TrainingCurves could not write curves.png: {error}")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        Saved(state_dict).load(self.restore, type(self).__name__)

    def restore(self, saved: Saved) -> None:
        """Take over the state of a checkpoint."""
        self.epochs = saved.read("epochs", mapping_of(mapping_of(read_number), read_count), {})
