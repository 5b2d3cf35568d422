"""The session that all watching callbacks of a Trainer share: run contexts, explanations, journal and logs.

A callback calls the session, never the other way round. Callbacks whose panel options are equal share a run context,
and in each explanation step the session computes the maps of a method on a batch once.
"""

import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from interpretable_training.attribution import Attribution
from interpretable_training.batches.read import Picked
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching._compat import weight_versions
from interpretable_training.callbacks.watching.background_sender import SENDERS, BackgroundSender
from interpretable_training.callbacks.watching.budget import BudgetController, plan
from interpretable_training.callbacks.watching.context import RunContext, build_context, find_panel
from interpretable_training.callbacks.watching.errors import ErrorPolicy, Failure
from interpretable_training.callbacks.watching.explanation_memo import ExplanationMemo, explain_batch
from interpretable_training.callbacks.watching.explanations import Explained, joined
from interpretable_training.callbacks.watching.image_panel import Collector
from interpretable_training.callbacks.watching.options import WatchOptions
from interpretable_training.callbacks.watching.run_journal import RunJournal, run_folder
from interpretable_training.callbacks.watching.schedule import ExplanationStep, current_step
from interpretable_training.callbacks.watching.startup_report import Line, merge_lines, number_names
from interpretable_training.callbacks.watching.step_progress import StepProgress, step_progress


@dataclass(frozen=True)
class StartEntry:
    """Part of a callback in the start-up report."""

    label: str
    settings: dict[str, Any]
    context: RunContext | None
    lines: list[Line]


class WatchSession:
    """Shared state of the watching callbacks of one Trainer, which it refers to weakly."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = weakref.ref(trainer)
        self.run: RunJournal | None = None  # on rank zero, outside of a dry run
        self.reset()

    @property
    def trainer(self) -> L.Trainer:
        """Return the Trainer."""
        trainer = self._trainer()
        assert trainer is not None, "a session lives as long as its Trainer"
        return trainer

    # A stage

    def reset(self) -> None:
        """Drop the state of the previous stage."""
        self.is_open = False
        self.contexts: dict[Hashable, RunContext] = {}
        self.collectors: dict[int, Collector] = {}  # by the identity of the options
        self.memo = ExplanationMemo()
        self.arrived: dict[str, set[int]] = {}
        self.entries: list[StartEntry] = []
        self.logged: set[str] = set()
        self.warned: set[str] = set()  # causes of failures
        self.best: dict[str, float] = {}  # of the numbers of a fit, sent with the report
        self.validated_in: int | None = None  # the epoch of the last validation
        self.seconds = 0.0  # of all callbacks in this epoch
        self.progress: StepProgress | None = None  # of the explanation step that runs

    def open(self, runs: Sequence[RunJournal | None], address: dict[str, str] | None) -> None:
        """Open the journal of the run, on all ranks, which agree on the folder.

        Args:
            runs: the journals to which the callbacks wrote before; a validation or test after a training adds to its.
            address: the journal of the checkpoint from which the training resumes.
        """
        self.is_open, trainer = True, self.trainer
        beside = run_folder(trainer)
        folder = beside if trainer.logger is None else beside / "explanations"
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            self.run = None
            return
        SENDERS.setdefault(trainer, BackgroundSender())
        known = [self.run, *(runs if trainer.state.fn != "fit" else [])]
        self.run = next((run for run in known if run is not None and run.journal.folder == folder), None)
        if self.run is None:
            self.run = RunJournal(folder, beside)
            if address is not None:
                self.run.resume(address, trainer.global_step)
            self.run.claim_page()

    def arrive(self, event: str, callback: L.Callback, active: Sequence[L.Callback]) -> bool:
        """Store that a callback has reached an event, and return whether all active callbacks have."""
        arrived = self.arrived.setdefault(event, set())
        arrived.add(id(callback))
        complete = all(id(other) in arrived for other in active)
        if complete:
            arrived.clear()
        return complete

    # Contexts and explanations

    def found_context(self, options: WatchOptions) -> RunContext | None:
        """Return the run context of a callback if it was found already."""
        return self.contexts.get(self._key(options))

    def context(self, options: WatchOptions, pl_module: L.LightningModule) -> RunContext | None:
        """Find the run context; None until there are images, and in a process that has none."""
        context, trainer = self.found_context(options), self.trainer
        if context is None:
            panel = find_panel(trainer, options)
            if panel is None:
                collector = Collector(-(-options.count // trainer.world_size), options)
                collector = self.collectors.setdefault(id(options), collector)
                panel = collector.panel(trainer.global_rank, trainer.world_size)
            if panel is None or (not panel.batches and trainer.global_rank > 0):
                return None
            context = build_context(trainer, pl_module, panel, options)
        context = context.of_module(pl_module)
        self.contexts[self._key(options)] = context
        return context

    def _key(self, options: WatchOptions) -> Hashable:
        """Return the key of the shared context; a callback that reads a stream does not share it."""
        return id(options) if id(options) in self.collectors else (self.trainer.state.fn, options.panel_key)

    def needs_batches(self, options: WatchOptions) -> bool:
        """Whether the images of a callback are taken from the batches that pass by."""
        return id(options) in self.collectors and self.found_context(options) is None

    def explain_batches(
        self, context: RunContext, methods: Mapping[str, Attribution], target: str | int, n: int
    ) -> Iterator[tuple[list[int], Picked, Explained]]:
        """Yield ids, batch and explanations of this process's images among the first `n` of the panel."""
        step = current_step(self.trainer)
        for number, (ids, picked) in enumerate(context.batches(self.trainer, n)):
            key = id(context.panel), id(context.network), weight_versions(context.network), number, len(ids)
            yield ids, picked, explain_batch(context, ids, picked, methods, target, self.memo.batch(step, key))
            if self.progress is not None:
                self.progress.advance(len(ids))

    def explain(self, context: RunContext, methods: Mapping[str, Attribution], target: str | int, n: int) -> Explained:
        """Explain this process's images among the first `n` of the panel.

        Args:
            context: what is explained.
            methods: name -> method.
            target: the class that is explained; where batches have no labels "label" is the predicted one.
            n: how many images, of all processes.
        """
        return joined([explained for _, _, explained in self.explain_batches(context, methods, target, n)])

    # The journal, the loggers, failures

    @property
    def bytes_written(self) -> int:
        """Return the number of bytes that the journal has written."""
        return 0 if self.run is None else self.run.journal.bytes_written

    def write(self, kind: str, step: ExplanationStep | None, **facts: Any) -> None:
        """Append a line to the journal."""
        when = {} if step is None else {"epoch": step.epoch, "step": step.global_step, "stage": step.stage}
        if self.run is not None:
            self.run.write(kind, **when, **facts)

    def write_page(self) -> None:
        """Write the page of the run, send it to the loggers, and wait for what is sent."""
        if self.run is None:
            return
        page = self.run.write_page()
        if page is not None and self.trainer.state.fn == "fit":
            logger_adapters.log_report(self.trainer, page, {"run": self.run.journal.run, "best": self.best})
        self.drain()

    @property
    def has_errors(self) -> bool:
        """Whether `drain` would raise another error of a logger."""
        return self.trainer in SENDERS and bool(SENDERS[self.trainer].errors)

    def drain(self) -> None:
        """Wait until the loggers have taken what was sent, for a limited time; raise one of their errors."""
        if self.trainer in SENDERS:
            SENDERS[self.trainer].drain()

    @contextmanager
    def show_progress(self, label: str) -> Iterator[None]:
        """Show in the Trainer's bar that a callback explains."""
        try:
            with step_progress(self.trainer, label) as self.progress:
                yield
        finally:
            self.progress = None

    def attempt(self, policy: ErrorPolicy, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, or its Failure, which is not counted yet."""
        step = current_step(self.trainer)
        return policy.attempt(work, lambda kind, **facts: self.write(kind, step, **facts), self.warned)

    def fail(self, policy: ErrorPolicy, failures: Sequence[Failure], step: ExplanationStep) -> None:
        """Count failures, write them to the journal, and raise the first where that is the policy."""
        policy.handle(failures, lambda kind, **facts: self.write(kind, step, **facts), self.warned)

    def log(self, label: str, values: Mapping[str, float], step: ExplanationStep, on_step: bool) -> None:
        """Log numbers, equal on all ranks, with Lightning's `log`, so that other callbacks can monitor them."""
        options: dict[str, Any] = {"batch_size": 1, "sync_dist": self.trainer.world_size > 1}
        options |= {"on_step": on_step, "on_epoch": not on_step, "add_dataloader_idx": False}
        returned = bool(self.trainer.loggers) or step.stage != "fit"  # `trainer.test` returns what loggers get
        options |= {"logger": not on_step and returned}  # in fit Lightning warns of it without a logger
        for name, value in values.items():
            if not (math.isnan(value) and name in self.logged):  # what others monitor keeps its value
                self.trainer.lightning_module.log(name, value, **options)
        self.logged |= set(values)
        if values:
            self.write("values", step, callback=label, values=values)

    def send(self, values: Mapping[str, float], step: ExplanationStep) -> None:
        """Send numbers of a step to the loggers; Lightning would leave out some (`log_every_n_steps`)."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": step.epoch}, step=step.logged)

    # What is written once for all callbacks

    def write_start_report(self) -> None:
        """Write and print the start-up report, and send the settings of the callbacks to the loggers."""
        entries, self.entries = self.entries, []
        names = number_names([entry.label for entry in entries])
        settings = {name: entry.settings for name, entry in zip(names, entries)}
        lines = merge_lines({name: entry.lines for name, entry in zip(names, entries)})
        if lines and self.trainer.loggers:
            lines.append(logger_adapters.picture_line(self.trainer))
        contexts = [entry.context for entry in entries if entry.context is not None]
        classes, model = contexts[0].class_names if contexts else None, type(self.trainer.lightning_module).__name__
        self.write("run", None, classes=classes, model=model, settings=settings, probe=lines)
        if lines:
            width = max(len(name) for name, _ in lines)
            rows = [f"  {name:<{width}}  {text}" for name, text in lines]
            rank_zero_info("\n".join(["Start-up report of the watching callbacks:", *rows]))
        logger_adapters.log_facts(self.trainer, settings)

    def plan(self, active: Sequence[Any], step: ExplanationStep) -> None:
        """Choose how many images the callbacks explain, before the first explanation step of a training."""
        if step.stage != "fit" or any(callback.schedule.last_step is not None for callback in active):
            return
        for label, text in plan(self.trainer, active, active[0].budget.start).items():
            rank_zero_info(f"{label}: {text}")
            self.write("dropped", step, callback=label, what=text)

    def write_costs(self, label: str, budget: BudgetController, change: str, step: ExplanationStep) -> None:
        """Write the cost of a callback in an epoch, and the change of its budget level."""
        if change:
            rank_zero_info(f"{label}: {change}")
            self.write("dropped", step, callback=label, what=change)
        cost = {"xai/seconds": budget.seconds, "xai/share_of_epoch": budget.share, "xai/megabytes": budget.bytes / 1e6}
        self.write("values", step, callback=label, values=cost)
        self.seconds += budget.seconds

    def end_epoch(self, duration: float, step: ExplanationStep) -> None:
        """Log the costs of all callbacks, and write the numbers of the project to the journal."""
        trainer = self.trainer
        total = {"xai/seconds": self.seconds, "xai/share_of_epoch": self.seconds / duration}
        self.seconds = 0.0
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1, "rank_zero_only": True}
        trainer.lightning_module.log_dict(total, **options, logger=bool(trainer.loggers))  # else Lightning warns
        fresh = self.validated_in == trainer.current_epoch  # else values of an earlier validation are still logged
        numbers = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.startswith("xai/") and value.numel() == 1 and (fresh or "val" not in name)
        }
        if numbers:
            self.write("training", step, values=numbers)


SESSIONS: weakref.WeakKeyDictionary[L.Trainer, WatchSession] = weakref.WeakKeyDictionary()


def session_of(trainer: L.Trainer) -> WatchSession:
    """Return the session of a Trainer, a new one at the first call."""
    if trainer not in SESSIONS:
        SESSIONS[trainer] = WatchSession(trainer)
    return SESSIONS[trainer]
