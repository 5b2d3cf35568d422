"""Where what was seen goes: the journal on disk, the project's loggers, the report.

Watching callbacks of a trainer share one journal. What there is one of for all of them (the table at the start, the
project's own curves, the costs, the report) is done by the last of them.
"""

import math
import os
import re
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from interpretable_training.attribution.core.state import StateWarning
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.folders import claim_page, run_folder
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.callbacks.watching.together import check_together
from interpretable_training.report.journal import Journal
from interpretable_training.report.value_readers import read_text

if TYPE_CHECKING:
    from interpretable_training.callbacks.watching.base import Watcher
    from interpretable_training.callbacks.watching.context import RunContext
    from interpretable_training.callbacks.watching.errors import Failure


def everyone(trainer: L.Trainer) -> "list[Watcher]":
    """The watching callbacks of a trainer, in order."""
    from interpretable_training.callbacks.watching.base import Watcher

    return [callback for callback in trainer.callbacks if isinstance(callback, Watcher)]  # type: ignore[attr-defined]


def watchers(trainer: L.Trainer) -> "list[Watcher]":
    """Those that watch in the stage that runs."""
    return [watcher for watcher in everyone(trainer) if trainer.state.fn in watcher.stages]


class Records:
    """What a callback writes, and through what."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.journal: Journal | None = None
        self.probe: list[tuple[str, str]] = []
        self.resumed: dict[str, str] | None = None  # the journal of the checkpoint from which the training goes on
        self.page: Path | None = None
        self.owner: weakref.ref[L.Trainer] | None = None  # the trainer whose journal it is
        self.validated_in: int | None = None
        self.logged: set[str] = set()  # names of values, in this stage
        self.complained = False

    @property
    def bytes_written(self) -> int:
        return 0 if self.journal is None else self.journal.bytes_written

    @property
    def address(self) -> dict[str, str] | None:
        """Where a training that goes on from a checkpoint finds this journal."""
        if self.journal is None:
            return None
        return {"folder": str(self.journal.folder.absolute()), "run": self.journal.run}

    def open(self, trainer: L.Trainer) -> None:
        """Take the journal of this trainer's folder, or begin it; on all ranks, which agree on the folder."""
        active = watchers(trainer)
        if active and active[0].records is self:
            check_together(trainer, active)
        self.logged.clear()
        self.folder = run_folder(trainer) / "explanations"
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            self.journal = None
            return
        others = [watcher.records for watcher in everyone(trainer)]
        self.page = None
        shared = next((r for r in others if r.belongs(trainer, self.folder)), None)
        resumed = next((r.resumed for r in others if r.resumed is not None), None)
        self.owner, self.resumed = weakref.ref(trainer), None
        if shared is not None:
            self.journal, self.page = shared.journal, shared.page
            return
        self.journal = Journal(self.folder)
        if resumed is not None:
            self.journal.run = resumed["run"]
            before = Path(resumed["folder"])
            if before == self.folder.absolute():
                self.write(trainer, "resume", None, step=trainer.global_step)
            else:
                near = (
                    os.path.relpath(before, self.folder) if before.anchor == self.folder.absolute().anchor else before
                )
                self.write(trainer, "continued", None, step=trainer.global_step, folder=str(near))
        with suppress(OSError):  # then a name is chosen when there is something to write
            self.page = claim_page(self.folder.parent, self.journal.run)

    def belongs(self, trainer: L.Trainer, folder: Path) -> bool:
        """Whether what this trainer does in a folder belongs into the journal; another one's training does not."""
        same = self.owner is not None and self.owner() is trainer
        return self.journal is not None and self.journal.folder == folder and (same or trainer.state.fn != "fit")

    def write(self, trainer: L.Trainer, kind: str, moment: Moment | None, **facts: Any) -> None:
        """Add a line to the journal; a full disk is said once and costs no more than the line."""
        if self.journal is None:
            return
        when = {} if moment is None else {"epoch": moment.epoch, "step": moment.step, "stage": moment.stage}
        try:
            self.journal.write(kind, **when, **facts)
        except OSError as error:
            if not any(other.records.complained for other in everyone(trainer)):
                rank_zero_warn(f"could not write to {self.journal.folder}, the training goes on: {error}")
            self.complained = True

    def log(
        self, trainer: L.Trainer, watcher: "Watcher", values: dict[str, float], moment: Moment, on_step: bool
    ) -> None:
        """Log numbers, which are the same on all ranks, as Lightning's own, so that other callbacks see them."""

        def send(row: dict[str, float]) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(row, step=moment.logged)

        options: dict[str, Any] = {"batch_size": 1, "sync_dist": trainer.world_size > 1, "add_dataloader_idx": False}
        for name, value in values.items():
            if not (math.isnan(value) and name in self.logged):  # what others monitor keeps its value
                watcher.log(name, value, on_step=on_step, on_epoch=not on_step, logger=not on_step, **options)
        self.logged |= set(values)
        if values:
            self.write(trainer, "values", moment, callback=watcher.label, values=values)
        if values and on_step:  # Lightning would not log all steps (log_every_n_steps)
            watcher.guard(trainer, lambda: send({**values, "epoch": moment.epoch}))

    def failed(self, trainer: L.Trainer, watcher: "Watcher", failure: "Failure", moment: Moment) -> None:
        """Say a reason when it is new, and add it to the journal each time."""
        first = watcher.reasons[failure.reason] == 1
        if first and watcher.on_error == "warn":
            state = isinstance(failure.error, StateWarning)  # the maps are there, but the training is another one
            text = f"{watcher.label} failed, the training goes on: {failure.reason}"
            rank_zero_warn(f"{watcher.label}: {failure.reason}" if state else text)
        self.write(trainer, "failure", moment, callback=watcher.label, reason=failure.reason, first=first)

    # What there is one of

    def started(self, trainer: L.Trainer, active: "list[Watcher]") -> None:
        """Say what callbacks have found, once they have."""
        named = dict(zip(unique([other.label for other in active]), active))
        settings = {name: other.settings() for name, other in named.items()}
        probe = together({name: other.records.probe for name, other in named.items()})
        scene = next((o.scenery.scene for o in active if o.scenery.scene is not None), None)
        classes = None if scene is None else scene.class_names
        model = type(trainer.lightning_module).__name__
        self.write(trainer, "run", None, classes=classes, model=model, settings=settings, probe=probe)
        if probe:
            width = max(len(name) for name, _ in probe)
            lines = [f"  {name:<{width}}  {text}" for name, text in probe]
            rank_zero_info("\n".join(["What the watching callbacks found:", *lines]))
        active[-1].guard(trainer, lambda: logger_adapters.log_facts(trainer, settings))

    def tell(self, trainer: L.Trainer, watcher: "Watcher", scene: "RunContext") -> None:
        """Keep what was found for the table at the start."""
        module = type(trainer.lightning_module).__name__
        name = scene.network_name or "the LightningModule itself"
        self.probe = [
            ("network", f"{name} ({type(scene.network).__name__}) of {module}"),
            ("batches", str(scene.first)),
            ("images", scene.panel.source),
            ("classes", scene.class_source),
            ("colors", scene.colors.source),
        ]
        self.probe += watcher.facts(trainer, scene) if trainer.is_global_zero else []

    def end_epoch(self, trainer: L.Trainer, watcher: "Watcher", moment: Moment, dropped: str = "") -> None:
        """Costs of the callback and what it leaves out for them; of all costs and the project's own numbers, once."""
        if dropped:
            rank_zero_info(f"{watcher.label}: {dropped}")
            self.write(trainer, "dropped", moment, callback=watcher.label, what=dropped)
        thrift = watcher.thrift
        cost = {"xai/seconds": thrift.seconds, "xai/share_of_epoch": thrift.share, "xai/megabytes": thrift.bytes / 1e6}
        self.write(trainer, "values", moment, callback=watcher.label, values=cost)
        active = watchers(trainer)
        if active[-1:] != [watcher]:
            return
        seconds = sum(other.thrift.seconds for other in active)
        total = {"xai/seconds": seconds, "xai/share_of_epoch": seconds / thrift.duration}
        watcher.log_dict(total, on_step=False, on_epoch=True, batch_size=1, rank_zero_only=True)
        fresh = self.validated_in == trainer.current_epoch  # else the values of an earlier validation are still there
        own = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.startswith("xai/") and value.numel() == 1 and (fresh or "val" not in name)
        }
        if own:
            self.write(trainer, "training", moment, values=own)

    def report(self, trainer: L.Trainer, watcher: "Watcher") -> None:
        """Make the page of what the journal holds; also of a training that was stopped."""
        if self.journal is None or watchers(trainer)[-1:] != [watcher]:
            return
        try:
            from interpretable_training.report.page import write_report

            self.page = self.page or claim_page(self.journal.folder.parent, self.journal.run)
            path = write_report(self.journal.folder, self.page, run=self.journal.run)
            rank_zero_info(f"Report of the watching callbacks: {path}")
        except Exception as error:  # a page is no reason to end a training
            rank_zero_warn(f"could not write the report of {self.journal.folder}: {type(error).__name__}: {error}")


def address(value: Any) -> dict[str, str]:
    """Return folder and run of the journal that a checkpoint names."""
    found = {name: read_text(value[name]) for name in ("folder", "run")}
    if not found["folder"] or "\0" in found["folder"] or not re.fullmatch(r"[\w-]{1,64}", found["run"]):
        raise ValueError(f"expected a folder and the name of a run, got {found}.")
    return found


def unique(names: list[str]) -> list[str]:
    """The names, the second of a kind with a number."""
    return [f"{name} {names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def together(found: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """What callbacks found, what they have in common once."""
    told = [lines for lines in found.values() if lines]
    common = [line for line in told[0] if all(line in lines for lines in told)] if told else []
    own = [(f"{name}: {a}", b) for name, lines in found.items() for a, b in lines if (a, b) not in common]
    return common + own
