"""Changes of explanations while the model trains.

    similarity = spearman(S, S')                                    (1)
    shift      = 1/2 sum over pixels of |S / sum S - S' / sum S'|   (2)

S: map of an image, of its magnitudes in (2). S': of the same image and class at an earlier explanation step. (2) is the
share of the map's mass that has to move, from 0 to 1. The stabilization point is the first explanation step after which
the mean of (2) to the previous step stays within a tenth; see `report/map_distance.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explanations import Explained, check_target, joined
from interpretable_training.callbacks.watching.map_changes import Maps, compare_maps, small_maps
from interpretable_training.callbacks.watching.options import (
    Images,
    OnError,
    Stages,
    common_options,
    suggest_options,
)
from interpretable_training.callbacks.watching.saved_state import Saved, map_stack
from interpretable_training.callbacks.watching.schedule import ExplanationStep, current_step
from interpretable_training.callbacks.watching.session import WatchSession
from interpretable_training.callbacks.watching.startup_report import Line, probe
from interpretable_training.report.map_distance import stabilization_point
from interpretable_training.report.value_readers import (
    list_of,
    mapping_of,
    optional,
    read_count,
    read_integer,
    read_number,
)
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen
from interpretable_training.visual.drift_curves import draw_drift

REFERENCES = ("previous", "first", "best")


class ExplanationDrift(Watcher):
    """Log `xai/<method>/similarity_<reference>` and `xai/<method>/shift_<reference>`, means over a panel of images.

    References are the `previous` explanation step, the `first` one and the one with the `best` monitored value so far.
    The first maps are compared with themselves. When the training ends, `xai/<method>/stabilization_step` is the first
    optimizer step after which the maps stay within a tenth of their mass; absent where they still change.

    >>> ExplanationDrift(max_images=8, monitor="val/accuracy", mode="max").settings()["monitor"]
    'val/accuracy'

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        max_images: how many images; by default 16, fewer where epochs are short, see `Watcher`.
        images: which images; see `Watcher`.
        target: the class that is explained: "label" (where batches have none the predicted one), which stays the same,
            "pred", "least" or a number.
        monitor: name of the value that decides which explanation step was the best; by default that of the project's
            checkpoint callback. Without one there is no best.
        mode: whether the smallest ("min") or largest ("max") of it is the best; by default the checkpoint callback's.
    """

    same_images = True

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        max_images: int | None = None,
        images: Images = "panel",
        target: int | str = "label",
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        stages: Stages = ("fit",),
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
        super().__init__(**common_options(locals()))
        check_target(target)
        if monitor is not None:
            one_of("mode", mode, "min", "max")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.target, self.monitor, self.mode = target, monitor, mode
        self.ids: list[int] = []  # of the images
        self.maps: dict[str, Maps] = {}  # by reference
        self.best: float | None = None
        self.history: list[dict[str, Any]] = []
        self.began = 0  # the entry of the history from which the images are the same
        self.numbers: dict[str, dict[str, dict[str, Tensor]]] = {}  # method -> reference -> kind -> (n,), the latest

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        return {"methods": methods, "target": self.target, "monitor": self.monitor, **super().settings()}

    def start_lines(self, session: WatchSession, context: RunContext) -> list[Line]:
        lines, self.budget.estimate = probe(session.trainer, context, self.methods, self.target, self.n)
        return lines

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> Explained:
        return session.explain(context, self.methods, self.target, self.budget.keep(self.n))

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        if not parts:
            return {}
        explained = joined(parts).sorted_by_id()
        now = small_maps(explained)
        if set(explained.ids) < set(self.ids):
            return {}  # another process failed
        previous = {name: S for name, S in self.maps.get("previous", {}).items() if name in now}
        if explained.ids != self.ids or any(now[name].shape != S.shape for name, S in previous.items()):
            self.maps, self.ids = {}, explained.ids  # other images: nothing to compare with
            self.began = len(self.history)
        for reference in ("first", "previous"):
            self.maps[reference] = now | self.maps.get(reference, {})
        rows = {
            name: {ref: compare_maps(S, self.maps[ref][name]) for ref in self._known(name)} for name, S in now.items()
        }
        self.maps["previous"] = self.maps["previous"] | now
        values = {
            f"xai/{name}/{kind}_{ref}": float(numbers[kind].nanmean())
            for name, refs in rows.items()
            for ref, numbers in refs.items()
            for kind in numbers
        }
        self.history.append({"epoch": step.epoch, "step": step.global_step, "values": values})
        self.numbers = rows
        return values

    def _known(self, name: str) -> list[str]:
        """Return the references that have a map of this method."""
        return [ref for ref in REFERENCES if name in self.maps.get(ref, {})]

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        for name, refs in self.numbers.items():
            rows = [
                {
                    "id": str(index),
                    **{ref: {k: v[i].item() for k, v in numbers.items()} for ref, numbers in refs.items()},
                }
                for i, index in enumerate(self.ids)
            ]
            session.write("drift", step, method=name, rows=rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._keep_best(trainer)

    def _keep_best(self, trainer: L.Trainer) -> None:
        """Keep the last maps if the validation was the best so far."""
        checkpoint = trainer.checkpoint_callback
        monitor = self.monitor or getattr(checkpoint, "monitor", None)
        mode = self.mode or getattr(checkpoint, "mode", "min")
        value = trainer.callback_metrics.get(monitor) if monitor else None
        if value is None or "previous" not in self.maps or self.schedule.last_epoch != trainer.current_epoch:
            return
        better = self.best is None or (float(value) > self.best if mode == "max" else float(value) < self.best)
        if better:
            self.best, self.maps["best"] = float(value), self.maps["previous"]

    def stabilization_steps(self) -> dict[str, float]:
        """Return the logged name -> optimizer step of the stabilization point, of the methods that have one."""
        history = self.history[self.began :]
        steps: dict[str, float] = {}
        for name in self.methods:
            shifts = [entry["values"].get(f"xai/{name}/shift_previous") for entry in history[1:]]
            point = stabilization_point(shifts)
            if point is not None:
                steps[f"xai/{name}/stabilization_step"] = float(history[point]["step"])
        return steps

    def finish(self, session: WatchSession) -> None:
        if self.history:
            epoch, trainer = self.history[-1]["epoch"], session.trainer
            step = replace(current_step(trainer), epoch=epoch)  # at the end the trainer counts one more
            if steps := self.stabilization_steps():
                session.write("values", step, callback=self.label, values=steps)
                session.send(steps, step)
            picture = draw_drift(self.history, list(self.methods))
            images = {"xai/drift": ([picture], ["explanations compared with earlier ones"])}
            logger_adapters.log_images(trainer, images, step.logged, epoch, file_type="png")

    def state_dict(self) -> dict[str, Any]:
        maps = {ref: {name: S.half() for name, S in maps.items()} for ref, maps in self.maps.items()}
        state = {"maps": maps, "ids": self.ids, "best": self.best, "history": self.history, "began": self.began}
        return {**super().state_dict(), **state}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.ids = saved.read("ids", list_of(read_integer), [])
        self.maps = saved.read("maps", self._read_maps, {})
        self.best = saved.read("best", optional(read_number), None)
        self.history = saved.read("history", list_of(history_entry), [])
        self.began = saved.read("began", read_count, 0)

    def _read_maps(self, value: Any) -> dict[str, Maps]:
        """Return the maps of a checkpoint, which belong to the images and to each other."""
        maps = mapping_of(mapping_of(map_stack))(value)
        shapes = {(name, S.shape) for reference in maps.values() for name, S in reference.items()}
        if len(shapes) > len({name for name, _ in shapes}) or any(len(self.ids) != shape[0] for _, shape in shapes):
            raise ValueError(f"expected maps of {len(self.ids)} images, of one shape for each method, got {shapes}.")
        return maps


def history_entry(value: Any) -> dict[str, Any]:
    """Return an entry of the history."""
    return {
        **{key: read_count(value[key]) for key in ("epoch", "step")},
        "values": mapping_of(read_number)(value["values"]),
    }
