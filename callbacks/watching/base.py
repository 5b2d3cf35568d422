"""The base of the callbacks that watch: when they look, what happens when looking fails, and what it costs.

A look is `measure` on each process, one exchange between processes, `scalars` logged by all and `show` on rank zero.
Whatever `measure` or `show` raise is counted, said once, and does not end the training.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.callbacks.watching.budget import Budget, BudgetController, at_least_one
from interpretable_training.callbacks.watching.context import Images, RunContext, options_of
from interpretable_training.callbacks.watching.errors import Failure, attempt, attempt_for
from interpretable_training.callbacks.watching.records import Records, address, watchers
from interpretable_training.callbacks.watching.saved_state import Saved, epoch_and_step
from interpretable_training.callbacks.watching.scenery import Scenery
from interpretable_training.callbacks.watching.schedule import (
    Moment,
    gather,
    last_batch,
    last_epoch,
    this_moment,
    validates_now,
)
from interpretable_training.report.value_readers import mapping_of, optional, read_count


class Watcher(L.Callback):
    """Looks at the model from time to time and changes nothing in it.

    Args:
        n: how many images are watched; of indices all.
        images: which: "panel" (chosen by the seed, as many of each class), indices of the validation set, a data set or
            loader of your own, or a function of the trainer that returns a batch.
        every_n_epochs: look at each validation of every n-th epoch, the first and the last one included; at the end of
            an epoch that has no validation. None: not by epochs.
        every_n_steps: look also every n steps of the optimizer.
        stages: stages in which to look, of "fit", "validate" and "test".
        on_error: "warn" says the reason of a failure once, counts it and goes on; "raise" ends the training.
        budget: what looking may cost; more of it makes the callback look at fewer images, then less often. A number is
            a share of the epoch's time.
        network: name of the part of the LightningModule that is explained; by default it is found.
        output: the logits in what it returns: a key, an index or a function; by default they are found.
        image_key: name or index of the images in a batch; by default they are found.
        label_key: name or index of the labels in a batch; by default they are found.
        class_names: names of the classes; by default those of the data module or data set.
        mean: what was subtracted from each channel of images in [0, 1]; by default it is found.
        std: what the difference was divided by.
        seed: of the choice of images.
    """

    same_images = False  # whether all images are needed at each look

    def __init__(
        self,
        n: int,
        images: Images = "panel",
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        stages: tuple[str, ...] | list[str] = ("fit", "test"),
        on_error: Literal["warn", "raise"] = "warn",
        budget: Budget | float | None = None,
        **reading: Any,
    ) -> None:
        if isinstance(images, str):
            one_of("images", images, "panel")
        elif isinstance(images, Sequence):
            n = len(images)
        for stage in stages:
            one_of("stages", stage, "fit", "validate", "test")
        one_of("on_error", on_error, "warn", "raise")
        at_least_one(n=n, every_n_epochs=every_n_epochs, every_n_steps=every_n_steps)
        self.n, self.images, self.stages, self.on_error = n, images, tuple(stages), on_error
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.options = options_of(type(self), reading)
        # A callback whose images must stay the same looks less often instead of at fewer of them.
        self.thrift = BudgetController(budget, n) if self.same_images else BudgetController(budget)
        self.records = Records()
        self.scenery = Scenery(images, n, self.options)
        self.step = 0  # after the last batch
        self.met = False  # whether there was a look in this validation
        self.looked: tuple[int, int] | None = None  # epoch and step
        self.looked_in: int | None = None  # the last epoch
        self.reasons: Counter[str] = Counter()
        self.new: dict[str, Any] = {}  # the state before the first training

    # What subclasses say

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        """What this process finds in its images; None where it has none. No exchange with other processes."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement measure.")

    def scalars(self, parts: list[Any], moment: Moment) -> dict[str, float]:
        """Numbers to be logged, the same in every process; NaN where all parts are missing."""
        return {}

    def show(self, trainer: L.Trainer, parts: list[Any], moment: Moment) -> None:
        """Write pictures and records; on rank zero."""

    def settings(self) -> dict[str, Any]:
        """What this callback was told to do."""
        return {"images": self.n, "every_n_epochs": self.every_n_epochs, "every_n_steps": self.every_n_steps}

    def facts(self, trainer: L.Trainer, scene: RunContext) -> list[tuple[str, str]]:
        """Lines of the report at the start that are this callback's own."""
        return []

    def begun(self, trainer: L.Trainer, scene: RunContext) -> None:
        """What is sent once, at the start."""

    @property
    def label(self) -> str:
        """The callback's name in records."""
        return type(self).__name__

    @property
    def state_key(self) -> str:
        images = self.images if isinstance(self.images, (str, list, tuple)) else type(self.images).__name__
        told = {
            **self.settings(),
            "images": images,
            "n": self.n,
            "stages": self.stages,
            "network": self.options.network,
        }
        return self._generate_state_key(**{name: repr(value) for name, value in told.items()})

    # When to look

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.new = self.new or copy.deepcopy(self.state_dict())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin(trainer, pl_module)

    on_test_start = on_train_start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.met = False
        if trainer.state.fn == "validate":
            self.begin(trainer, pl_module)

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare what can be prepared before the first look, and say what was found."""
        self.scenery.clear()
        self.step, self.met = trainer.global_step, False
        if trainer.state.fn not in self.stages:
            return
        if trainer.state.fn == "fit" and not trainer.global_step:
            self.load_state_dict(self.new)  # of an earlier training nothing is left
        self.records.open(trainer)
        found = attempt_for(self, trainer, lambda: self.scenery.find(trainer, pl_module))
        failed = [part for part in gather(trainer, found if isinstance(found, Failure) else None) if part]
        self.failed(trainer, failed, this_moment(trainer))
        self.tell(trainer)
        if watchers(trainer)[-1] is self:
            self.records.started(trainer, watchers(trainer))

    def tell(self, trainer: L.Trainer) -> bool:
        """Say what was found, as soon as there is something; whether it was said now."""
        scene = self.scenery.scene
        if scene is None or self.scenery.told:
            return False
        self.scenery.told = True
        self.guard(trainer, lambda: self.records.tell(trainer, self, scene))
        self.guard(trainer, lambda: self.begun(trainer, scene))
        return True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.thrift.start_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "fit" not in self.stages:
            return
        step, before = trainer.global_step, self.step
        self.step = step
        if self.scenery.waits and not trainer.enable_validation:
            self.guard(trainer, lambda: self.scenery.take(batch))
        if self.due(trainer) and validates_now(trainer):
            return  # to look then
        every = (self.every_n_steps or 0) * self.thrift.stretch(self.n)
        by_steps = every > 0 and step // every > before // every  # an optimizer may make several steps in a batch
        # An epoch without validation ends here for us: what is logged now is seen by every callback at its end.
        by_epochs = trainer.is_last_batch and self.due(trainer) and self.looked_in != trainer.current_epoch
        if by_steps or by_epochs:
            self.look(trainer, pl_module, by_epochs, on_step=True)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.after_batch(trainer, pl_module, batch)

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Look after the last batch: averaged weights, which later hooks take away again, are still in the model."""
        if trainer.sanity_checking or trainer.state.fn not in self.stages:
            return
        if self.scenery.waits:
            self.guard(trainer, lambda: self.scenery.take(batch))
        if last_batch(trainer):
            self.meet(trainer, pl_module)

    def meet(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look once in a validation or test, where all processes do."""
        if not self.met and (trainer.state.fn != "fit" or self.due(trainer)):
            self.look(trainer, pl_module)
        self.met = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn in self.stages:
            self.meet(trainer, pl_module)  # for this process there was no batch

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.records.validated_in = trainer.current_epoch
        if trainer.state.fn == "validate":
            self.records.report(trainer, self)

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this epoch is one to look at."""
        every = (self.every_n_epochs or 0) * self.thrift.stretch(self.n)
        return every > 0 and (trainer.current_epoch % every == 0 or last_epoch(trainer))

    def look(
        self, trainer: L.Trainer, pl_module: L.LightningModule, for_epoch: bool = True, on_step: bool = False
    ) -> None:
        """Measure, exchange, log, show."""
        moment = this_moment(trainer)
        key = (moment.epoch, moment.step)
        if moment.stage == "fit" and key == self.looked:  # before the checkpoint from which the run went on was written
            return
        start, size = time.perf_counter(), self.records.bytes_written
        part = attempt_for(self, trainer, lambda: self.measure(trainer, self.scenery.find(trainer, pl_module), moment))
        parts = gather(trainer, part)
        if moment.stage == "fit":
            self.looked, self.looked_in = key, moment.epoch if for_epoch else self.looked_in
        if self.tell(trainer):
            self.records.started(trainer, [self])
        failed = [part for part in parts if isinstance(part, Failure)]
        good = [part for part in parts if part is not None and not isinstance(part, Failure)]
        partly = [failure for part in good for failure in getattr(part, "errors", {}).values()]
        self.failed(trainer, failed + partly, moment)
        if good or failed:
            found = attempt(lambda: self.scalars(good, moment))  # the same in all processes
            self.failed(trainer, [found] if isinstance(found, Failure) else [], moment)
            values = {} if isinstance(found, Failure) else found
            self.records.log(trainer, self, {moment.prefix + k: v for k, v in values.items()}, moment, on_step)
        if good and trainer.is_global_zero:
            self.guard(trainer, lambda: self.show(trainer, good, moment))
        self.thrift.spend(time.perf_counter() - start, self.records.bytes_written - size)

    def guard(self, trainer: L.Trainer, work: Callable[[], Any]) -> None:
        """Do what concerns this process alone; a failure is counted."""
        if isinstance(found := attempt_for(self, trainer, work), Failure):
            self.failed(trainer, [found], this_moment(trainer))

    def failed(self, trainer: L.Trainer, failures: list[Failure], moment: Moment) -> None:
        """Count failures; raise the first where that was asked for."""
        for failure in failures:
            self.reasons[failure.reason] += 1
            self.records.failed(trainer, self, failure, moment)
        if failures and self.on_error == "raise":
            raise failures[0].error
        for failure in failures:
            failure.forget()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "fit" not in self.stages:
            return
        if self.due(trainer) and self.looked_in != trainer.current_epoch:  # a loader that does not know its last batch
            self.look(trainer, pl_module)
        self.thrift.end_epoch(trainer)
        self.records.end_epoch(trainer, self, this_moment(trainer), self.thrift.adjust(trainer, self.n))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and "fit" in self.stages:
            self.guard(trainer, lambda: self.finish(trainer))

    def finish(self, trainer: L.Trainer) -> None:
        """What is sent once, at the end; on rank zero."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.records.report(trainer, self)

    on_test_end = on_fit_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.records.report(trainer, self)

    def state_dict(self) -> dict[str, Any]:
        told = {"looked": self.looked, "looked_in": self.looked_in, "reasons": dict(self.reasons)}
        return {**told, "thrift": self.thrift.state_dict(), "journal": self.records.address}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        Saved(state_dict).load(self.restore, self.label)

    def restore(self, saved: Saved) -> None:
        """Take over the state of a checkpoint."""
        self.looked = saved.read("looked", optional(epoch_and_step), None)
        self.looked_in = saved.read("looked_in", optional(read_count), None)
        self.reasons = Counter(saved.read("reasons", mapping_of(read_count), {}))
        self.thrift.restore(saved.part("thrift"))
        self.records.resumed = saved.read("journal", optional(address), None)
