"""Base of the modules of this room: checkpoints of plain values, and schedules that end with the training."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from ._compat import INSTANTIATOR, attached_trainer, saved_hyper_parameters
from .class_paths import check_hyper_parameters

OBJECT = "object of class "  # how checkpoints name objects that they cannot rebuild
# The second form is a scheduler without T_max: `configure_optimizers` adds it.
SchedulerCallable = LRSchedulerCallable | Callable[[Optimizer, int], CosineAnnealingLR]


class PlainModule(L.LightningModule):
    """Module with checkpoints of plain values and names of networks, losses, optimizers and metrics only."""

    optimizer: OptimizerCallable
    scheduler: SchedulerCallable | None
    warmup_steps: int = 0  # of the optimizer, over which the learning rate rises

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        weights_only = True if weights_only is None else weights_only  # Lightning's default depends on the address
        if weights_only:  # without it the caller trusts the file to execute code
            for values in saved_hyper_parameters(cls, checkpoint_path, hparams_file):
                # Arguments of the caller replace those of the file.
                check_hyper_parameters({key: value for key, value in values.items() if key not in kwargs})
        load = super().load_from_checkpoint
        return load(checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)

    def save_arguments(self, **arguments: Any) -> None:
        """Save the arguments of the calling constructor as hyper-parameters, objects by the names of their classes.

        Args:
            **arguments: Those that may be modules, such as `network=network`.
        """
        frame = inspect.currentframe()
        assert frame is not None  # CPython has frames
        objects = {name: value for name, value in arguments.items() if isinstance(value, nn.Module)}
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *objects], frame=frame.f_back)
        if INSTANTIATOR in self.hparams:  # from the command line all arguments are plain values
            self.save_hyperparameters(frame=frame.f_back)
        else:
            self.save_hyperparameters({name: name_of_object(value) for name, value in objects.items()})
        refuse_names_of_objects(**arguments)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        configs: list[dict[str, Any]] = []
        if self.scheduler is not None:
            build: Callable[..., Any] = self.scheduler
            scheduler = build(optimizer, T_max=self._number_of_epochs()) if lacks_epochs(build) else build(optimizer)
            configs.append({"scheduler": scheduler, "interval": "epoch"})
            if isinstance(scheduler, ReduceLROnPlateau):
                configs[0]["monitor"] = scheduler.monitor
        if self.warmup_steps > 1:  # the first step has 1 / warmup_steps of the rate, the last one all of it
            rise = LinearLR(optimizer, 1 / self.warmup_steps, total_iters=self.warmup_steps - 1)
            configs.append({"scheduler": rise, "interval": "step"})
        return [optimizer], configs

    def _number_of_epochs(self) -> int:
        """Return max_epochs of the trainer, at which the schedule ends."""
        trainer = attached_trainer(self)
        epochs = None if trainer is None else trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"expected a number of epochs for the scheduler of {type(self).__name__}, got max_epochs={epochs}; "
                "pass max_epochs to the trainer, or T_max to the scheduler."
            )
        return epochs


def lacks_epochs(scheduler: Any) -> bool:
    """Whether a scheduler needs the argument T_max and does not have it yet."""
    keywords = getattr(scheduler, "keywords", {})
    callables = (scheduler, getattr(scheduler, "func", None), *getattr(scheduler, "args", ()))
    for cls in callables:  # jsonargparse passes the class as an argument of a function of its own
        if isinstance(cls, type):
            parameter = inspect.signature(cls).parameters.get("T_max")
            return parameter is not None and parameter.default is parameter.empty and "T_max" not in keywords
    return False


def name_of_object(value: Any) -> str:
    """Return what a checkpoint holds in place of an object."""
    return OBJECT + type(value).__qualname__


def refuse_names_of_objects(**arguments: Any) -> None:
    """Raise for objects that a checkpoint names and does not hold."""
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith(OBJECT):
            raise ValueError(
                f"expected {name}=..., because this checkpoint was made with an {value}, got none; "
                f"build it and call load_from_checkpoint(path, {name}={value.removeprefix(OBJECT)}(...))."
            )
