"""Terms that callbacks add to the loss of any LightningModule with automatic optimization.

The hook is `on_before_backward`: Lightning hands over the loss that `training_step` returned, just before it is
differentiated, and the term is added to it in place. Before that, `on_train_batch_start` prepares the step: while
`training_step` runs, its forward pass is recorded, and the first images that a network gets may be replaced by a copy
whose gradient can be taken. Nothing of the module is changed.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import lightning as L
from torch import Tensor, nn

from interpretable_training.regularization.gradients import RecordedForward
from interpretable_training.regularization.monitoring import grad_scale, warn_if_compiled


class AddedLoss(L.Callback):
    """Add `weight_at` times `term` to the loss of each training step.

    >>> class SquaredLoss(AddedLoss):
    ...     weight_at = lambda self, step: 0.5
    ...     begin = lambda self, step, trainer, pl_module: step.watch([pl_module])
    ...     term = lambda self, step, trainer, pl_module, loss, scale: loss.square()
    >>> SquaredLoss().step.weight
    0.0

    Args:
        network: Name of the submodule that gets the images.
    """

    instead = "compute the term in its training_step"  # advice where the optimization is manual

    def __init__(self, network: str | None = None) -> None:
        self.network, self.step = network, Step()

    def weight_at(self, step: int) -> float:
        """Return the weight of the term in a step; 0 in steps without it."""
        raise NotImplementedError

    def begin(self, step: "Step", trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the network and record its forward pass, before `training_step` runs."""
        raise NotImplementedError

    def term(
        self, step: "Step", trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor, scale: float
    ) -> Tensor | None:
        """Return the term, with graph; None adds nothing.

        Args:
            loss: Loss of the batch, as `training_step` returned it.
            scale: Factor by which the trainer multiplies losses in float16.
        """
        raise NotImplementedError

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        several = [type(c).__name__ for c in trainer.callbacks if isinstance(c, AddedLoss)]  # type: ignore[attr-defined]
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                f"expected a module with automatic optimization, got {type(pl_module).__name__} with manual; "
                f"{self.instead} instead."
            )
        if len(several) > 1:
            raise ValueError(
                f"expected one callback that records the training step, got {several}; "
                f"leave out all but one, or {self.instead}."
            )
        warn_if_compiled(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        weight = self.weight_at(trainer.global_step)
        if weight:
            self.step = Step(weight, batch)
            self.begin(self.step, trainer, pl_module)

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
        term = self.term(step, trainer, pl_module, loss / factor, scale)
        if term is not None:
            loss.add_(factor * step.weight * term)

    def on_train_batch_end(self, *_: Any) -> None:
        self.step.stack.close()  # of a batch that training_step skipped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step.stack.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.step.stack.__exit__(type(exception), exception, exception.__traceback__)


class Step:
    """State of the training step that is running: weight and batch, and the images and output of the network.

    >>> step = Step(0.5)
    >>> step.watch([network])
    >>> logits = network(images)
    >>> step.stack.close()
    >>> torch.equal(step.images, images), torch.equal(step.output, logits), step.calls
    (True, True, 1)
    """

    def __init__(self, weight: float = 0.0, batch: Any = None) -> None:
        self.weight, self.batch, self.stack = weight, batch, ExitStack()
        self.images: Tensor | None = None
        self.network: nn.Module | None = None  # that got them
        self.output: Any = None  # that it returned
        self.calls = 0  # number of calls of the network
        self.run: RecordedForward | None = None

    def watch(self, networks: Iterable[nn.Module]) -> None:
        """Store images and output of the first of the networks that gets images, until `stack` is closed."""
        for network in networks:
            before = network.register_forward_pre_hook(self.take, with_kwargs=True)
            after = network.register_forward_hook(self.store)
            self.stack.callback(before.remove)
            self.stack.callback(after.remove)

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

    def store(self, network: nn.Module, args: Any, output: Any) -> None:
        """Store what the network returned for the images."""
        if network is self.network:
            self.output = output if self.calls == 0 else self.output
            self.calls += 1
