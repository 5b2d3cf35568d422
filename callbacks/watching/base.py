"""The base of the watching callbacks: when they explain, how failures are handled, and what an explanation step costs.

In an explanation step each process computes its part, the processes exchange their parts, all of them log the numbers
and rank zero draws. An exception in any of this is counted, logged once, and does not end the training.
"""

import functools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.callbacks.watching.budget import MIN_IMAGES, Budget, BudgetController
from interpretable_training.callbacks.watching.conflicts import warn_of_conflicts
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.errors import ErrorPolicy, Failure
from interpretable_training.callbacks.watching.hooks import WatchHooks, active_callbacks
from interpretable_training.callbacks.watching.options import (
    Images,
    OnError,
    Stages,
    WatchOptions,
    common_options,
    suggest_options,
)
from interpretable_training.callbacks.watching.run_journal import RunJournal, read_address
from interpretable_training.callbacks.watching.saved_state import Saved, epoch_and_step
from interpretable_training.callbacks.watching.schedule import (
    ExplanationStep,
    Schedule,
    current_step,
    gather,
)
from interpretable_training.callbacks.watching.session import StartEntry, WatchSession, session_of
from interpretable_training.callbacks.watching.startup_report import Line, context_lines
from interpretable_training.report.value_readers import mapping_of, optional, read_count
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen


class Watcher(WatchHooks):
    """Explain the model from time to time and change nothing in it.

    A subclass implements `compute`, and `values` or `draw`.

    >>> Watcher(max_images=4, stages=["fit", "validate"]).settings()
    {'max_images': 4, 'every_n_epochs': 1, 'every_n_steps': None}

    Args:
        max_images: how many images are explained; of indices all. By default 16, and fewer, but at least 4, where all
            callbacks with the default would take more than a seventh of the first epoch's time. Give a number where
            runs are compared.
        images: which: "panel" (chosen by the seed, as many of each class), indices of the validation set, a data set or
            loader of your own, or a function of the trainer that returns a batch.
        every_n_epochs: explain at each validation of every n-th epoch, the first and the last one included; at the end
            of an epoch that has no validation. None: not by epochs.
        every_n_steps: explain also every n steps of the optimizer.
        stages: stages in which to explain, of "fit", "validate" and "test".
        on_error: "warn" logs the reason of a failure once, counts it and goes on; "raise" ends the training.
        budget: the highest cost; above it the callback explains fewer images, then less often. A number is a share of
            the epoch's time.
        network: the part of the LightningModule that is explained: its name, or a function of the LightningModule; by
            default it is found.
        output: the logits in what it returns: a key, an index or a function; by default they are found.
        image_key: the images in a batch: name, index or a function of the batch; by default they are found.
        label_key: the same of the labels; False if there are none.
        class_names: names of the classes; by default those of the data module or data set.
        mean: what was subtracted from each channel of images in [0, 1]; by default it is found.
        std: what the difference was divided by.
        seed: of the choice of images.
        task: what the network is for: "auto" (found in what it returns), "classification", "multilabel", "regression",
            "segmentation", "detection", "embedding", or a `Task`.
        channels: the three channels that are shown as red, green and blue, counted from 1; by default the first three,
            or the mean of those of other images.
    """

    same_images = False  # whether all images are needed in each explanation step
    default_images = 16  # images that are explained where their number is not given

    @suggest_options
    def __init__(
        self,
        max_images: int | None = None,
        images: Images = "panel",
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        stages: Stages = ("fit", "test"),
        on_error: OnError = "warn",
        budget: Budget | float | None = None,
        network: Chosen = None,
        output: Output = None,
        image_key: Key = None,
        label_key: LabelKey = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        task: str | Task = "auto",
        channels: Sequence[int] | None = None,
    ) -> None:
        self.automatic = max_images is None and budget is None and not isinstance(images, (list, tuple))
        max_images = self.default_images if max_images is None else max_images
        self.options = WatchOptions(**common_options(locals()))
        self.n = self.options.count
        self.budget = BudgetController(budget, MIN_IMAGES if budget is None else 1, self.same_images)
        self.errors = ErrorPolicy(self.label, on_error)
        self.schedule = Schedule(every_n_epochs, every_n_steps)
        self.journal: RunJournal | None = None
        self.address: dict[str, str] | None = None  # of the journal of the checkpoint from which the training resumes
        self._reported = False  # whether the start-up report has the context
        self.initial_state: dict[str, Any] = {}

    # What subclasses implement

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> Any:
        """Return what this process computes of its images. No exchange with other processes."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement compute.")

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        """Return numbers to be logged, the same in every process; NaN where all parts are missing."""
        return {}

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        """Write pictures and records; on rank zero."""

    def settings(self) -> dict[str, Any]:
        """Return the options that the journal and the loggers get."""
        options = self.options
        return {
            "max_images": self.n,
            "every_n_epochs": options.every_n_epochs,
            "every_n_steps": options.every_n_steps,
        }

    def start_lines(self, session: WatchSession, context: RunContext) -> list[Line]:
        """Return the callback's own lines of the start-up report, and set `budget.estimate`; on rank zero."""
        return []

    def start(self, session: WatchSession, context: RunContext) -> None:
        """Send passports and other facts once, at the start."""

    @property
    def label(self) -> str:
        """Return the callback's name in records."""
        return type(self).__name__

    @property
    def state_key(self) -> str:
        """Return a key that differs between callbacks with different settings."""
        options = self.options
        images = options.images if isinstance(options.images, (str, list, tuple)) else type(options.images).__name__
        named = {"images": images, "n": self.n, "stages": tuple(options.stages), "network": options.network}
        return self._generate_state_key(**{name: repr(value) for name, value in (self.settings() | named).items()})

    # The start of a stage

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the run context if there are images already, and add to the start-up report."""
        self.schedule.begin(trainer)
        self._reported = False
        if not self._is_active(trainer):
            return
        if trainer.state.fn == "fit" and not trainer.global_step:
            self.load_state_dict(self.initial_state)  # nothing remains of an earlier training
        session, step = session_of(trainer), current_step(trainer)
        if not session.is_open:
            warn_of_conflicts(trainer, active_callbacks(trainer))
            peers = [callback for callback in trainer.callbacks if isinstance(callback, Watcher)]  # type: ignore[attr-defined]
            addresses = [peer.address for peer in peers if peer.address is not None]
            session.open([peer.journal for peer in peers], addresses[0] if addresses else None)
        self.journal, self.address = session.run, None
        context = session.attempt(self.errors, lambda: session.context(self.options, pl_module))
        failures = [part for part in gather(trainer, context if isinstance(context, Failure) else None) if part]
        session.fail(self.errors, failures, step)
        self._add_to_start_report(session, None if isinstance(context, Failure) else context)
        if self._all_arrived(trainer, "start"):
            self._guard(trainer, session.write_start_report)

    def _add_to_start_report(self, session: WatchSession, context: RunContext | None) -> None:
        lines: list[Line] = []
        self._reported = context is not None
        if context is not None:
            lines += context_lines(context, session.trainer.lightning_module)
            if session.trainer.is_global_zero:
                self._guard(session.trainer, lambda: lines.extend(self.start_lines(session, context)))
            self._guard(session.trainer, lambda: self.start(session, context))
        session.entries.append(StartEntry(self.label, self.settings(), context, lines))

    def _report_streams(self, session: WatchSession, pl_module: L.LightningModule) -> None:
        """Report once what was found in batches of a stream, for this callback and those that have all their images."""
        for peer in active_callbacks(session.trainer):
            collector = session.collectors.get(id(peer.options))
            if not isinstance(peer, Watcher) or peer._reported or collector is None:
                continue
            if peer is self or collector.seen >= collector.n:
                context = session.attempt(peer.errors, functools.partial(session.context, peer.options, pl_module))
                if isinstance(context, RunContext):
                    peer._add_to_start_report(session, context)
        if session.entries:
            self._guard(session.trainer, session.write_start_report)

    # An explanation step

    def _explain(
        self, trainer: L.Trainer, pl_module: L.LightningModule, for_epoch: bool = True, on_step: bool = False
    ) -> None:
        """Compute, exchange, log, draw."""
        session, step = session_of(trainer), current_step(trainer)
        if step.stage == "fit" and (step.epoch, step.global_step) == self.schedule.last_step:
            return  # explained before the checkpoint was written from which the training resumed
        self._report_streams(session, pl_module)
        session.plan(active_callbacks(trainer), step)
        start, size = time.perf_counter(), session.bytes_written
        with session.show_progress(self.label):
            part = session.attempt(self.errors, lambda: self._part(session, pl_module, step))
        parts = gather(trainer, part)
        self.schedule.record(step, for_epoch)
        context = session.found_context(self.options)
        failures = [part for part in parts if isinstance(part, Failure)]
        good = [part for part in parts if part is not None and not isinstance(part, Failure)]
        of_methods = [failure for part in good for failure in method_failures(part)]
        session.fail(self.errors, failures + of_methods, step)
        if good or failures:
            self._log(session, good, step, on_step)
        if good and trainer.is_global_zero:
            assert context is not None  # rank zero has the first image
            self._guard(trainer, lambda: self.draw(session, context, good, step))
        self.budget.spend(time.perf_counter() - start, session.bytes_written - size)

    def _part(self, session: WatchSession, pl_module: L.LightningModule, step: ExplanationStep) -> Any:
        context = session.context(self.options, pl_module)
        return None if context is None else self.compute(session, context, step)

    def _log(self, session: WatchSession, parts: list[Any], step: ExplanationStep, on_step: bool) -> None:
        values: dict[str, float] = {}
        try:
            values = self.values(parts, step)  # the same in all processes
        except Exception as error:
            session.fail(self.errors, [Failure(error)], step)
        values = {step.prefix + name: value for name, value in values.items()}
        session.log(self.errors.owner, values, step, on_step)
        if values and on_step:
            self._guard(session.trainer, lambda: session.send(values, step))

    # The state in a checkpoint

    def state_dict(self) -> dict[str, Any]:
        schedule = {name: getattr(self.schedule, name) for name in ("last_step", "last_epoch")}
        journal = None if self.journal is None else self.journal.address
        state = {"reasons": dict(self.errors.reasons), "budget": self.budget.state_dict(), "journal": journal}
        return {**schedule, **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        Saved(state_dict).load(self.restore, self.label)

    def restore(self, saved: Saved) -> None:
        """Take over the state of a checkpoint."""
        self.schedule.last_step = saved.read("last_step", optional(epoch_and_step), None)
        self.schedule.last_epoch = saved.read("last_epoch", optional(read_count), None)
        reasons: dict[str, int] = saved.read("reasons", mapping_of(read_count), {})
        self.errors.reasons = Counter(reasons)
        self.budget.restore(saved.part("budget"))
        self.schedule.stretch = self.budget.stretch(self.n)
        self.address = saved.read("journal", optional(read_address), None)


def method_failures(part: Any) -> list[Failure]:
    """Return why single methods failed in a part, or in the parts of a mapping, each reason once."""
    groups = part.values() if isinstance(part, Mapping) else [part]
    failures = [failure for group in groups for failure in getattr(group, "errors", {}).values()]
    return list({failure.reason: failure for failure in failures}.values())
