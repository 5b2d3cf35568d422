"""Guided-gradient regularization for any LightningModule.

The hook is `on_before_backward`: Lightning hands over the loss that `training_step` returned, just before it is
differentiated, and the regularizer is added to it in place. Before that, `on_train_batch_start` prepares the step:
while `training_step` runs, activations are intercepted, and the first images that a network gets are replaced by a copy
whose gradient can be taken. Nothing of the module is changed.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor, nn

from interpretable_training.batches.read import pick
from interpretable_training.regularization import GuidedGradientRegularizer, Parts
from interpretable_training.regularization.gradients import RecordedForward, record_forward
from interpretable_training.regularization.monitoring import (
    grad_scale,
    log_parts,
    report_gated,
    warn_if_compiled,
    warn_of_collapse,
)

CRITERIA = ("criterion", "loss", "loss_fn", "loss_function")


class GuidedGradientRegularization(L.Callback):
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

    def __init__(
        self,
        regularizer: GuidedGradientRegularizer = GuidedGradientRegularizer(),  # noqa: B008  frozen
        network: str | None = None,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        target: str | int | None = None,
    ) -> None:
        self.regularizer, self.network, self.criterion, self.target = regularizer, network, criterion, target
        self.step, self.reported = Step(), False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                f"expected a module with automatic optimization, got {type(pl_module).__name__} with manual; "
                "call GuidedGradientRegularizer in its training_step instead."
            )
        warn_if_compiled(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        weight = self.regularizer.weight_at(trainer.global_step)
        if weight:
            self.step = Step(weight, batch)
            self.step.watch(pl_module, self.network)
            if self.regularizer.fraction == 1:
                self.step.record(pl_module, self.regularizer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        step, self.step = self.step, Step()
        step.stack.close()
        if not step.weight:
            return
        if step.images is None:
            raise RuntimeError(
                f"expected training_step of {type(pl_module).__name__} to call "
                f"{self.network or 'the module or one of its submodules'} with images (B, C, H, W), got no such call; "
                "pass network='...', the name of the submodule that gets them."
            )
        # Lightning differentiates the loss divided by the number of accumulated batches, times the factor of float16.
        scale = grad_scale(trainer)
        factor = scale / trainer.accumulate_grad_batches
        if step.run is None:
            with trainer.precision_plugin.forward_context():
                parts = self.compare_part(step, pl_module, scale)
        else:
            parts = self.regularizer.compare(step.run, None, loss / factor, len(step.images), step.weight, scale)
        assert parts.regularization is not None
        log_parts(pl_module, replace(parts, classification=loss.detach() / factor), len(step.images))
        loss.add_(factor * parts.weight * parts.regularization)  # (4.4)
        if not self.reported:
            report_gated(pl_module, parts)
            self.reported = True

    def compare_part(self, step: "Step", pl_module: L.LightningModule, scale: float) -> Parts:
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

    def on_train_batch_end(self, *_: Any) -> None:
        self.step.stack.close()  # of a batch that training_step skipped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step.stack.close()
        warn_of_collapse(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.step.stack.__exit__(type(exception), exception, exception.__traceback__)


class Step:
    """State of the training step that is running: weight, batch, images, network."""

    def __init__(self, weight: float = 0.0, batch: Any = None) -> None:
        self.weight, self.batch, self.stack = weight, batch, ExitStack()
        self.images: Tensor | None = None
        self.network: nn.Module | None = None
        self.run: RecordedForward | None = None

    def record(self, pl_module: L.LightningModule, regularizer: GuidedGradientRegularizer) -> None:
        """Intercept activations until `stack` is closed."""
        self.run = self.stack.enter_context(record_forward(pl_module, regularizer.at, regularizer.scope))

    def watch(self, pl_module: L.LightningModule, name: str | None) -> None:
        """Find the images among the arguments of the network."""
        for network in [pl_module, *pl_module.children()] if name is None else [pl_module.get_submodule(name)]:
            handle = network.register_forward_pre_hook(self.take, with_kwargs=True)
            self.stack.callback(handle.remove)

    def take(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Store the images, and give the network a copy whose gradient can be taken."""
        arguments = [*enumerate(args), *kwargs.items()]
        key = next((k for k, v in arguments if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 2), None)
        if self.images is not None or key is None:
            return None
        values = dict(arguments)
        self.images, self.network = values[key], network
        if self.run is None:
            return None
        values[key] = self.run.leaf(values[key])
        return tuple(values[i] for i in range(len(args))), {name: values[name] for name in kwargs}
