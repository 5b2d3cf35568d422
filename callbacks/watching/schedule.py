"""Schedule of explanation steps, and the exchange of parts between processes."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch.distributed as dist

from interpretable_training.callbacks.watching._compat import averages_weights, logged_step, may_stop, validates_now


@dataclass(frozen=True)
class ExplanationStep:
    """One time in a run at which callbacks explain.

    >>> ExplanationStep("test", epoch=3, global_step=12, logged=12).prefix
    'test/'

    Attributes:
        stage: "fit", "validate" or "test".
        epoch: the trainer's current one.
        global_step: optimizer steps so far.
        logged: the step under which Lightning logs now.
        weights: "raw", or "averaged" while a callback has put averaged weights into the model.
    """

    stage: str
    epoch: int
    global_step: int
    logged: int
    weights: str = "raw"

    @property
    def name(self) -> str:
        """Return the part of file names that identifies the step."""
        start = "" if self.stage == "fit" else f"{self.stage}-"
        return f"{start}epoch{self.epoch:04d}-step{self.global_step:07d}"

    @property
    def prefix(self) -> str:
        """Return the start of all logged names: nothing in fit, "validate/" and "test/" in these stages."""
        return "" if self.stage == "fit" else f"{self.stage}/"


class Schedule:
    """Decide after which batches, validations and epochs a callback explains.

    Args:
        every_n_epochs: explain in each n-th epoch, None for no epoch.
        every_n_steps: explain each n steps of the optimizer, None for no step.
    """

    def __init__(self, every_n_epochs: int | None, every_n_steps: int | None) -> None:
        self.every_n_epochs, self.every_n_steps = every_n_epochs or 0, every_n_steps or 0
        self.stretch = 1  # factor by which a budget makes explanation steps rarer
        self.last_step: tuple[int, int] | None = None  # epoch and step of the last explanation step of a fit
        self.last_epoch: int | None = None  # the last epoch with an explanation step for the epoch
        self.step = 0  # after the last batch
        self.validated = False  # whether this validation already had its explanation step

    def begin(self, trainer: L.Trainer) -> None:
        """Begin a stage."""
        self.step, self.validated = trainer.global_step, False

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether this epoch is one in which to explain."""
        every = self.every_n_epochs * self.stretch
        return every > 0 and (trainer.current_epoch % every == 0 or is_last_epoch(trainer))

    def epoch_lacks_step(self, trainer: L.Trainer) -> bool:
        """Whether this epoch is one in which to explain, and had no explanation step yet."""
        return self.is_due(trainer) and self.last_epoch != trainer.current_epoch

    def after_training_batch(self, trainer: L.Trainer) -> tuple[bool, bool]:
        """Return whether to explain now, and whether that is the explanation step of the epoch."""
        step, before = trainer.global_step, self.step
        self.step = step
        if self.is_due(trainer) and validates_now(trainer):
            return False, False  # the validation that follows has an explanation step
        every = self.every_n_steps * self.stretch
        by_steps = every > 0 and step // every > before // every  # an optimizer may make several steps in a batch
        # An epoch without validation ends now: every callback reads the values logged now at the end of the epoch.
        by_epochs = trainer.is_last_batch and self.epoch_lacks_step(trainer)
        return by_steps or by_epochs, by_epochs

    def in_validation(self, trainer: L.Trainer) -> bool:
        """Whether to explain at the end of a validation or test; once in each."""
        explain = not self.validated and (trainer.state.fn != "fit" or self.is_due(trainer))
        self.validated = True
        return explain

    def record(self, step: ExplanationStep, for_epoch: bool) -> None:
        """Store an explanation step of a fit as the last one."""
        if step.stage == "fit":
            self.last_step = step.epoch, step.global_step
            self.last_epoch = step.epoch if for_epoch else self.last_epoch


def current_step(trainer: L.Trainer) -> ExplanationStep:
    """Return the explanation step of the hook that runs."""
    averaged = trainer.validating and any(map(averages_weights, trainer.callbacks))  # type: ignore[attr-defined]
    return ExplanationStep(
        str(trainer.state.fn.value if trainer.state.fn else "fit"),
        trainer.current_epoch,
        trainer.global_step,
        logged_step(trainer),
        "averaged" if averaged else "raw",
    )


def gather(trainer: L.Trainer, part: Any) -> list[Any]:
    """Return the parts of all processes; every process has to call it, whatever happened before."""
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return [part]
    parts: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(parts, part)
    return parts


def is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether the training ends with this epoch, as far as can be known."""
    steps = 0 < trainer.max_steps <= trainer.global_step
    stopped = may_stop(trainer)
    return steps or stopped or trainer.current_epoch + 1 == trainer.max_epochs


def is_last_batch(trainer: L.Trainer) -> bool:
    """Whether the batch that has just been validated or tested was the last one."""
    if trainer.state.fn == "test":
        loop: Any = trainer.test_loop
    elif trainer.state.fn == "validate":
        loop = trainer.validate_loop
    else:
        loop = trainer.fit_loop.epoch_loop.val_loop
    return bool(loop.batch_progress.is_last_batch)
