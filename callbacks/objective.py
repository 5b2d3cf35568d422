"""One number made of several logged values, for checkpoints, early stopping and sweeps, which monitor one."""

from collections.abc import Mapping
from typing import Any

import lightning as L


class Objective(L.Callback):
    """Log the weighted sum of logged values after each validation.

    Accuracy and faithfulness together: `Objective({"val/accuracy": 1, "xai/gradcam/average_gain": 0.01})`.

    >>> Objective({"val/accuracy": 1, "val/loss": -0.5}).name
    'val/objective'

    Args:
        weights: name of a logged value -> its weight; negative for values that should be small.
        name: of the sum.
    """

    def __init__(self, weights: dict[str, float], name: str = "val/objective") -> None:
        if not weights:
            raise ValueError("expected the name and weight of at least one logged value, got none.")
        self.weights, self.name = dict(weights), name

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        logged: Mapping[str, Any] = trainer.callback_metrics
        missing = [name for name in self.weights if name not in logged]
        if missing:
            raise ValueError(
                f"expected the values {missing} among those that were logged, got {sorted(logged)}; those of "
                "explanations come from InterpretabilityMetrics, in each epoch with every_n_epochs=1."
            )
        value = sum(weight * float(logged[name]) for name, weight in self.weights.items())
        pl_module.log(self.name, value, batch_size=1, sync_dist=trainer.world_size > 1)
