"""Guided-gradient regularization for any LightningModule; `training.added_loss` describes the hooks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor

from interpretable_training.batches.read import pick
from interpretable_training.callbacks.training.added_loss import AddedLoss, Step
from interpretable_training.regularization import GuidedGradientRegularizer, Parts
from interpretable_training.regularization.gradients import record_forward
from interpretable_training.regularization.monitoring import log_parts, report_gated, warn_of_collapse

CRITERIA = ("criterion", "loss", "loss_fn", "loss_function")


class GuidedGradientRegularization(AddedLoss):
    """Add a guided-gradient regularizer to the loss of any LightningModule with automatic optimization.

    L_C is whatever `training_step` returns as its loss. With a `fraction` below 1 the part of the batch runs once more
    and needs a criterion and a target of its own. Logged, of the steps that are regularized: `train/regularization`,
    `train/similarity`, `train/gradient_norm` and `train/guided_gradient_norm`.

    >>> GuidedGradientRegularization(GuidedGradientRegularizer(weight=0.01), network="encoder").network
    'encoder'

    Args:
        regularizer: What is added. Layers (`at`) are named as in the LightningModule: "network.layer3".
        network: Name of the submodule that gets the images; by default the first one (or the module itself) that is
            called with a floating point tensor of three dimensions or more.
        criterion: Function of what the network returns and the target, for a `fraction` below 1; by default the
            attribute `criterion`, `loss`, `loss_fn` or `loss_function` of the module.
        target: Key or index of the target in a batch, likewise; by default the second of a pair, or "target" of a dict.
    """

    instead = "call GuidedGradientRegularizer in its training_step"

    def __init__(
        self,
        regularizer: GuidedGradientRegularizer = GuidedGradientRegularizer(),  # noqa: B008  frozen
        network: str | None = None,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        target: int | str | None = None,
    ) -> None:
        super().__init__(network)
        self.regularizer, self.criterion, self.target = regularizer, criterion, target
        self.reported = False

    def weight_at(self, step: int) -> float:
        return self.regularizer.weight_at(step)

    def begin(self, step: Step, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        any_network = [pl_module, *pl_module.children()]
        step.watch(any_network if self.network is None else [pl_module.get_submodule(self.network)])
        if self.regularizer.fraction == 1:
            recorded = record_forward(pl_module, self.regularizer.at, self.regularizer.scope)
            step.run = step.stack.enter_context(recorded)

    def term(self, step: Step, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor, scale: float) -> Tensor:
        assert step.images is not None
        if step.run is None:
            with trainer.precision_plugin.forward_context():
                parts = self.compare_part(step, pl_module, scale)
        else:
            parts = self.regularizer.compare(step.run, None, loss, len(step.images), step.weight, scale)
        assert parts.regularization is not None
        log_parts(pl_module, replace(parts, classification=loss.detach()), len(step.images))
        if not self.reported:
            report_gated(pl_module, parts)
            self.reported = True
        return parts.regularization

    def compare_part(self, step: Step, pl_module: L.LightningModule, scale: float) -> Parts:
        """Return the parts of the loss of a fraction of the batch."""
        assert step.images is not None and step.network is not None  # noqa: PT018  one fact
        named = [getattr(pl_module, name, None) for name in CRITERIA]
        criterion = self.criterion or next((candidate for candidate in named if callable(candidate)), None)
        if criterion is None:
            raise ValueError(
                f"expected a criterion for a fraction of the batch, found none of {CRITERIA} in "
                f"{type(pl_module).__name__}; pass criterion=..., a function of logits and target."
            )
        target = pick(step.batch, strict=True).pair()[1] if self.target is None else step.batch[self.target]
        return self.regularizer.compare_part(step.network, step.images, target, criterion, step.weight, scale)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        warn_of_collapse(trainer)
