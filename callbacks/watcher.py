"""The base of the callbacks that watch: when they look, what happens when looking fails, and what it costs.

A look is `measure` on each process, one exchange between processes, `scalars` logged by all and `show` on rank zero.
Whatever `measure` or `show` raise is counted, said once, and does not end the training.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from interpretable_training.attribution.maps import one_of
from interpretable_training.callbacks.failure import Failure
from interpretable_training.callbacks.moments import Moment, gather, last_batch, this_moment, validates_now
from interpretable_training.callbacks.records import Records
from interpretable_training.callbacks.scene import Collector, Images, Options, Scene, build_scene, find_panel
from interpretable_training.callbacks.thrift import Budget, Thrift

STAGES = ("fit", "validate", "test")


class Watcher(L.Callback):
    """Looks at the model from time to time and changes nothing in it.

    Args:
        n: how many images are watched.
        images: which: "panel" (chosen by the seed, as many of each class), indices of the validation set, a data set or
            loader of your own, or a function of the trainer that returns a batch.
        every_n_epochs: look at each validation of every n-th epoch, the first and the last one included; at the end of
            an epoch that has no validation. None: not by epochs.
        every_n_steps: look also every n steps of the optimizer.
        on: stages in which to look, of "fit", "validate" and "test".
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
        on: tuple[str, ...] | list[str] = ("fit", "test"),
        on_error: Literal["warn", "raise"] = "warn",
        budget: Budget | float | None = None,
        **reading: Any,
    ) -> None:
        if isinstance(images, str):
            one_of("images", images, "panel")
        one_of("on_error", on_error, "warn", "raise")
        for stage in on:
            one_of("on", stage, *STAGES)
        counts = {"number of images": n, "every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}.")
        self.n, self.images, self.on, self.on_error = n, images, tuple(on), on_error
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.options = Options(**reading)
        # A callback whose images must stay the same looks less often instead of at fewer of them.
        limit = Budget(budget) if isinstance(budget, (int, float)) else budget
        self.thrift = Thrift(limit, n) if self.same_images else Thrift(limit)
        self.records = Records()
        self.scenes: dict[str, Scene | None] = {}
        self.collector: Collector | None = None
        self.looked: tuple[str, int, int] | None = None  # the last moment
        self.looked_in: int | None = None  # the last epoch
        self.reasons: Counter[str] = Counter()

    # What subclasses say

    def measure(self, trainer: L.Trainer, scene: Scene | None, moment: Moment) -> Any:
        """What this process finds in its images; None where it has none. No exchange with other processes."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement measure.")

    def scalars(self, parts: list[Any], moment: Moment) -> dict[str, float]:
        """Numbers to be logged, the same in every process."""
        return {}

    def show(self, trainer: L.Trainer, parts: list[Any], moment: Moment) -> None:
        """Write pictures and records; on rank zero."""

    def settings(self) -> dict[str, Any]:
        """What this callback was told to do."""
        return {"images": self.n, "every_n_epochs": self.every_n_epochs, "every_n_steps": self.every_n_steps}

    def facts(self, trainer: L.Trainer, scene: Scene) -> list[tuple[str, str]]:
        """Lines of the report at the start that are this callback's own."""
        return []

    def begun(self, trainer: L.Trainer, scene: Scene) -> None:
        """What is sent once, at the start."""

    @property
    def label(self) -> str:
        """The callback's name in records."""
        return type(self).__name__

    @property
    def state_key(self) -> str:
        return self._generate_state_key(**{name: repr(value) for name, value in self.settings().items()})

    # When to look

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.begin(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin(trainer, pl_module)

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare what can be prepared before the first look, and say what was found."""
        self.scenes.clear()
        if trainer.state.fn not in self.on:
            return
        self.records.open(trainer)
        found = self.attempt(lambda: self.find_scene(trainer, pl_module))
        failed = [part for part in gather(trainer, found if isinstance(found, Failure) else None) if part]
        if failed:
            self.failed(trainer, failed, this_moment(trainer))
        elif found is not None:
            self.guard(trainer, lambda: self.records.tell(trainer, self, found))
            self.guard(trainer, lambda: self.begun(trainer, found))
        self.records.started(trainer, self)

    def find_scene(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Scene | None:
        """What is watched in this stage; None until there is something."""
        stage = str(trainer.state.fn)
        if self.scenes.get(stage) is None:
            panel = find_panel(trainer, self.images, self.n, self.options)
            if panel is None:
                self.collector = self.collector or Collector(-(-self.n // trainer.world_size), self.options)
                panel = self.collector.panel() if self.collector.batches else None
            idle = panel is None or (not panel.batches and trainer.global_rank > 0)
            self.scenes[stage] = None if idle or panel is None else build_scene(trainer, pl_module, panel, self.options)
        return self.scenes[stage]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.thrift.start_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "fit" not in self.on:
            return
        step = trainer.global_step
        by_steps = self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0
        # An epoch without validation ends here for us: what is logged now is seen by every callback at its end.
        by_epochs = trainer.is_last_batch and self.due(trainer) and not validates_now(trainer)
        if by_steps or (by_epochs and self.looked_in != trainer.current_epoch):
            self.look(trainer, pl_module, on_step=by_steps)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.after_batch(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.after_batch(trainer, pl_module, batch)

    def after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Look after the last batch: averaged weights, which later hooks take away again, are still in the model."""
        if trainer.sanity_checking or trainer.state.fn not in self.on:
            return
        if self.collector is not None and self.scenes.get(str(trainer.state.fn)) is None:
            self.guard(trainer, partial(self.collector.take, batch))
        if last_batch(trainer) and (trainer.state.fn != "fit" or self.due(trainer)):
            self.look(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.records.validated_in = trainer.current_epoch

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this epoch is one to look at."""
        if self.every_n_epochs is None:
            return False
        epoch, end = trainer.current_epoch, trainer.max_epochs
        every = self.every_n_epochs * self.thrift.stretch(self.n)
        return epoch % every == 0 or (end is not None and epoch == end - 1)

    # Looking

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule, on_step: bool = False) -> None:
        """Measure, exchange, log, show."""
        moment = this_moment(trainer)
        key = (moment.stage, moment.epoch, moment.step)
        if key == self.looked:  # already seen, before the checkpoint from which the run went on was written
            return
        self.looked, self.looked_in = key, moment.epoch
        start, size = time.perf_counter(), self.records.bytes_written
        found = self.attempt(lambda: self.measure(trainer, self.find_scene(trainer, pl_module), moment))
        parts = gather(trainer, found)
        failed = [part for part in parts if isinstance(part, Failure)]
        if failed:
            self.failed(trainer, failed, moment)
        good = [part for part in parts if part is not None and not isinstance(part, Failure)]
        partly = [Failure(RuntimeError(reason)) for part in good for reason in getattr(part, "errors", {}).values()]
        if partly:
            self.failed(trainer, partly, moment)
        if good:
            values = self.attempt(lambda: self.scalars(good, moment))  # the same in all processes
            if isinstance(values, Failure):
                self.failed(trainer, [values], moment)
                return
            self.records.log(trainer, self, {moment.prefix + k: v for k, v in values.items()}, moment, on_step)
            if trainer.is_global_zero:
                self.guard(trainer, lambda: self.show(trainer, good, moment))
        self.thrift.spend(time.perf_counter() - start, self.records.bytes_written - size)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or its failure."""
        try:
            return work()
        except Exception as error:
            return Failure(error)

    def guard(self, trainer: L.Trainer, work: Callable[[], Any]) -> None:
        """Do what concerns this process alone; a failure is counted."""
        found = self.attempt(work)
        if isinstance(found, Failure):
            self.failed(trainer, [found], this_moment(trainer))

    def failed(self, trainer: L.Trainer, failures: list[Failure], moment: Moment) -> None:
        """Count failures, say a reason when it is new; raise it where that was asked for."""
        for failure in failures:
            self.reasons[failure.reason] += 1
            first = self.reasons[failure.reason] == 1
            if first and self.on_error == "warn":
                rank_zero_warn(f"{self.label} failed, the training goes on: {failure.reason}")
            self.records.write(trainer, "failure", moment, callback=self.label, reason=failure.reason, first=first)
        if self.on_error == "raise":
            raise failures[0].error

    # At the end

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "fit" not in self.on:
            return
        if self.due(trainer) and self.looked_in != trainer.current_epoch:  # a loader that does not know its last batch
            self.look(trainer, pl_module)
        self.thrift.end_epoch(trainer)
        said = self.thrift.adjust(trainer, self.n)
        if said:
            rank_zero_info(f"{self.label}: {said}")
            self.records.write(trainer, "dropped", this_moment(trainer), callback=self.label, what=said)
        self.records.end_epoch(trainer, self, this_moment(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and "fit" in self.on:
            self.guard(trainer, lambda: self.finish(trainer))

    def finish(self, trainer: L.Trainer) -> None:
        """What is sent once, at the end; on rank zero."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.records.report(trainer, self)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.records.report(trainer, self)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.records.report(trainer, self)

    def state_dict(self) -> dict[str, Any]:
        return {"looked": self.looked, "looked_in": self.looked_in, "reasons": dict(self.reasons)} | {
            "thrift": self.thrift.state_dict(),
            "journal": self.records.address,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        looked = state_dict["looked"]
        self.looked, self.looked_in = None if looked is None else tuple(looked), state_dict["looked_in"]
        self.reasons = Counter(state_dict["reasons"])
        self.thrift.load_state_dict(state_dict["thrift"])
        self.records.resumed = state_dict["journal"]
