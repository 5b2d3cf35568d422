"""When something is watched, and by how many processes."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging

from interpretable_training.callbacks.watching.logger_adapters import logged_step


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes:
        stage: "fit", "validate" or "test".
        epoch: the trainer's current one.
        step: optimizer steps so far.
        logged: the step under which Lightning files what is logged now.
        weights: "raw", or "averaged" while a callback has put averaged weights into the model.
        last: whether the run is about to end.
    """

    stage: str
    epoch: int
    step: int
    logged: int
    weights: str = "raw"

    @property
    def name(self) -> str:
        """Part of the names of files."""
        start = "" if self.stage == "fit" else f"{self.stage}-"
        return f"{start}epoch{self.epoch:04d}-step{self.step:07d}"

    @property
    def prefix(self) -> str:
        """Of logged names."""
        return "test/" if self.stage == "test" else ""


def this_moment(trainer: L.Trainer) -> Moment:
    """The moment at which a hook runs."""
    averaged = trainer.validating and any(
        isinstance(callback, WeightAveraging) and callback._average_model is not None
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )
    return Moment(
        str(trainer.state.fn.value if trainer.state.fn else "fit"),
        trainer.current_epoch,
        trainer.global_step,
        logged_step(trainer),
        "averaged" if averaged else "raw",
    )


def gather(trainer: L.Trainer, part: Any) -> list[Any]:
    """What each process has; every process has to call it, whatever happened to it before."""
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return [part]
    parts: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(parts, part)
    return parts


def validates_now(trainer: L.Trainer) -> bool:
    """Whether a validation follows the batch of training that has just ended."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def last_epoch(trainer: L.Trainer) -> bool:
    """Whether the training ends with this epoch, as far as can be known."""
    steps = 0 < trainer.max_steps <= trainer.global_step
    stopped = trainer.should_stop and trainer.fit_loop._can_stop_early
    return steps or stopped or trainer.current_epoch + 1 == trainer.max_epochs


def last_batch(trainer: L.Trainer) -> bool:
    """Whether the batch that has just been validated or tested was the last one."""
    if trainer.state.fn == "test":
        loop: Any = trainer.test_loop
    elif trainer.state.fn == "validate":
        loop = trainer.validate_loop
    else:
        loop = trainer.fit_loop.epoch_loop.val_loop
    return bool(loop.batch_progress.is_last_batch)
