"""A learning rate that rises from batch to batch before the schedule of epochs takes over."""

from typing import Any

import lightning as L


class LearningRateWarmUp(L.Callback):
    """Raises the learning rate linearly, batch by batch, over the first epochs; at their end it is the optimizer's own.

    Args:
        epochs: Number of epochs.
    """

    def __init__(self, epochs: int = 1) -> None:
        if epochs < 1:
            raise ValueError(f"expected epochs >= 1, got {epochs}; leave the callback out for no warm-up.")
        self.epochs = epochs

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch >= self.epochs:
            return
        n = trainer.num_training_batches
        share = (trainer.current_epoch * n + batch_idx + 1) / (self.epochs * n)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group.setdefault("initial_lr", group["lr"])
