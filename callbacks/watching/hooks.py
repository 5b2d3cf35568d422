"""The hooks of the watching callbacks: in which of them they explain, and what is done after all of them."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning as L

from interpretable_training.callbacks.watching._compat import AnyCallback
from interpretable_training.callbacks.watching.budget import BudgetController
from interpretable_training.callbacks.watching.errors import ErrorPolicy, Failure
from interpretable_training.callbacks.watching.options import WatchOptions
from interpretable_training.callbacks.watching.schedule import Schedule, current_step, is_last_batch
from interpretable_training.callbacks.watching.session import WatchSession, session_of


class WatchHooks(AnyCallback):
    """Call `_begin` at the start of a stage, `_explain` for each explanation step and `finish` at the end of fit."""

    options: WatchOptions
    n: int  # images
    budget: BudgetController
    errors: ErrorPolicy
    schedule: Schedule
    initial_state: dict[str, Any]  # before the first training

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare a stage."""
        raise NotImplementedError

    def _explain(
        self, trainer: L.Trainer, pl_module: L.LightningModule, for_epoch: bool = True, on_step: bool = False
    ) -> None:
        """Run an explanation step."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the options that the journal and the loggers get."""
        raise NotImplementedError

    def finish(self, session: WatchSession) -> None:
        """Send tables and summaries once, at the end; on rank zero."""

    def _guard(self, trainer: L.Trainer, work: Callable[[], Any]) -> None:
        """Run work of this process alone; a failure is counted."""
        session = session_of(trainer)
        if isinstance(result := session.attempt(self.errors, work), Failure):
            session.fail(self.errors, [result], current_step(trainer))

    def _is_active(self, trainer: L.Trainer) -> bool:
        return trainer.state.fn in self.options.stages

    def _all_arrived(self, trainer: L.Trainer, event: str) -> bool:
        """Whether this is the last of the active callbacks to reach an event."""
        return self._is_active(trainer) and session_of(trainer).arrive(event, self, active_callbacks(trainer))

    def _leave_hook(self, trainer: L.Trainer) -> None:
        """Free the shared explanations when all callbacks have been in the hook."""
        if self._all_arrived(trainer, "hook"):
            session_of(trainer).memo.clear()

    # The start and the end of a stage

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.initial_state = self.initial_state or copy.deepcopy(self.state_dict())
        session_of(trainer).reset()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module)

    on_test_start = on_train_start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.schedule.validated = False
        if trainer.state.fn == "validate":
            self._begin(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and "fit" in self.options.stages:
            self._guard(trainer, lambda: self.finish(session_of(trainer)))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_page(trainer)

    on_test_end = on_fit_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        session_of(trainer).memo.clear()
        with suppress(Exception):  # the one that ends the training is the one to see
            self._write_page(trainer)

    def _write_page(self, trainer: L.Trainer) -> None:
        """Write the page after all callbacks have written their last lines, those about loggers included."""
        if self._all_arrived(trainer, "end"):
            session = session_of(trainer)
            self._guard(trainer, session.drain)
            while session.has_errors:
                self._guard(trainer, session.drain)
            self._guard(trainer, session.write_page)

    # When to explain

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.budget.start_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "fit" not in self.options.stages:
            return
        if not trainer.enable_validation:
            self._collect(trainer, batch)
        explain, for_epoch = self.schedule.after_training_batch(trainer)
        if explain:
            self._explain(trainer, pl_module, for_epoch, on_step=True)
        self._leave_hook(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.after_batch(trainer, pl_module, batch)

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Explain after the last batch: averaged weights, which later hooks take away again, are still in the model."""
        if trainer.sanity_checking or not self._is_active(trainer):
            return
        self._collect(trainer, batch)
        if is_last_batch(trainer) and self.schedule.in_validation(trainer):
            self._explain(trainer, pl_module)
        self._leave_hook(trainer)

    def _collect(self, trainer: L.Trainer, batch: Any) -> None:
        """Take images of a stream from a batch that passes by."""
        session = session_of(trainer)
        if session.needs_batches(self.options):
            self._guard(trainer, lambda: session.collectors[id(self.options)].take(batch))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and self._is_active(trainer):
            if self.schedule.in_validation(trainer):  # in a process without a batch
                self._explain(trainer, pl_module)
            self._leave_hook(trainer)

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            session_of(trainer).validated_in = trainer.current_epoch
        if trainer.state.fn == "validate":
            self._write_page(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "fit" not in self.options.stages:
            return
        if self.schedule.epoch_lacks_step(trainer):  # where the loader does not know its last batch
            self._explain(trainer, pl_module)
        session, step = session_of(trainer), current_step(trainer)
        self.budget.end_epoch()
        change = self.budget.adjust(trainer, self.n)
        self.schedule.stretch = self.budget.stretch(self.n)
        session.write_costs(self.errors.owner, self.budget, change, step)
        if self._all_arrived(trainer, "epoch end"):
            session.memo.clear()
            session.end_epoch(self.budget.duration, step)


def active_callbacks(trainer: L.Trainer) -> list[WatchHooks]:
    """Return the callbacks that explain in the stage that runs."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WatchHooks) and callback._is_active(trainer)]
