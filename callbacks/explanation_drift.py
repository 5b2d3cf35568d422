"""How much explanations change while the model trains.

    similarity = spearman(S, S')                                    (1)
    shift      = 1/2 sum over pixels of |S / sum S - S' / sum S'|   (2)

S: map of an image, of its magnitudes in (2). S': of the same image and class at an earlier look. (2) is the share of
the map's mass that has to move, from 0 to 1.
"""

from typing import Any, Literal

import lightning as L
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explained import Explained, Look, check_target, joined
from interpretable_training.callbacks.watching.explaining import explain_panel
from interpretable_training.callbacks.watching.saved_state import Saved, map_stack
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.callbacks.watching.startup_report import probe
from interpretable_training.metrics.core.similarity import spearman
from interpretable_training.report.journal import shrink
from interpretable_training.report.value_readers import (
    list_of,
    mapping_of,
    optional,
    read_count,
    read_integer,
    read_number,
)
from interpretable_training.visual.drift_curves import draw_drift

REFERENCES = ("previous", "first", "best")
Maps = dict[str, Tensor]  # method -> small maps (n, h, w)


class ExplanationDrift(Watcher):
    """Logs `xai/<method>/similarity_<reference>` and `xai/<method>/shift_<reference>`, means over a panel of images.

    References are the look before (`previous`), the `first` one and the one with the `best` monitored value so far. At
    the first look the map is compared with itself.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        images: which images; see `Watcher`.
        n_images: how many of them.
        target: the class that is explained: "label" (where batches have none the predicted one), which stays the same,
            "pred", "least" or a number.
        monitor: name of the value that says which look was the best; by default that of the project's checkpoint
            callback. Without one there is no best.
        mode: whether the smallest ("min") or largest ("max") of it is the best; by default the checkpoint callback's.
        stages: stages in which to look.
        **watch: when to look and how to read batches; see `Watcher`.
    """

    same_images = True

    def __init__(
        self,
        methods: Methods | None = None,
        images: Any = "panel",
        n_images: int = 16,
        target: str | int = "label",
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        stages: tuple[str, ...] | list[str] = ("fit",),
        **watch: Any,
    ) -> None:
        super().__init__(n_images, images, stages=stages, **watch)
        check_target(target)
        if monitor is not None:
            one_of("mode", mode, "min", "max")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.target, self.monitor, self.mode = target, monitor, mode
        self.ids: list[int] = []  # of the images whose maps are kept
        self.kept: dict[str, Maps] = {}  # reference -> maps
        self.best: float | None = None
        self.history: list[dict[str, Any]] = []
        self.rows: dict[str, dict[str, dict[str, Tensor]]] = {}  # of this look: method -> reference -> kind -> (n,)

    def settings(self) -> dict[str, Any]:
        told = {"methods": {name: repr(method) for name, method in self.methods.items()}, "target": self.target}
        return {**told, "monitor": self.monitor, **super().settings()}

    def facts(self, trainer: L.Trainer, scene: RunContext) -> list[tuple[str, str]]:
        return probe(trainer, scene, self.methods, self.target, self.n)

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        if scene is None:
            return None
        return Look({"panel": explain_panel(trainer, scene, self.methods, self.target, self.n)})

    def scalars(self, parts: list[Any], moment: Moment) -> dict[str, float]:
        if not parts:
            return {}
        found = joined([part.found["panel"] for part in parts]).sorted_by_id()
        now = small(found)
        if set(found.ids) < set(self.ids):
            return {}  # another process failed
        if found.ids != self.ids or any(now[name].shape != old.shape for name, old in self.newest(now).items()):
            self.kept, self.ids = {}, found.ids  # other images: nothing to compare with
        for reference in ("first", "previous"):
            self.kept[reference] = now | self.kept.get(reference, {})
        rows = {
            name: {ref: compare(S, self.kept[ref][name]) for ref in self.comparable(name)} for name, S in now.items()
        }
        self.kept["previous"] = self.kept["previous"] | now
        values = {
            f"xai/{name}/{kind}_{ref}": float(numbers[kind].nanmean())
            for name, refs in rows.items()
            for ref, numbers in refs.items()
            for kind in numbers
        }
        self.history.append({"epoch": moment.epoch, "step": moment.step, "values": values})
        self.rows = rows
        return values

    def newest(self, now: Maps) -> Maps:
        """What was seen last of the methods that are there now."""
        return {name: old for name, old in self.kept.get("previous", {}).items() if name in now}

    def comparable(self, name: str) -> list[str]:
        """The references that have a map of this method."""
        return [ref for ref in REFERENCES if name in self.kept.get(ref, {})]

    def show(self, trainer: L.Trainer, parts: list[Any], moment: Moment) -> None:
        for name, refs in self.rows.items():
            rows = [
                {
                    "id": str(index),
                    **{ref: {k: v[i].item() for k, v in numbers.items()} for ref, numbers in refs.items()},
                }
                for i, index in enumerate(self.ids)
            ]
            self.records.write(trainer, "drift", moment, method=name, rows=rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.remember_best(trainer)

    def remember_best(self, trainer: L.Trainer) -> None:
        """Keep the last maps if the validation was the best so far."""
        checkpoint = trainer.checkpoint_callback
        monitor = self.monitor or getattr(checkpoint, "monitor", None)
        mode = self.mode or getattr(checkpoint, "mode", "min")
        value = trainer.callback_metrics.get(monitor) if monitor else None
        if value is None or "previous" not in self.kept or self.looked_in != trainer.current_epoch:
            return
        better = self.best is None or (float(value) > self.best if mode == "max" else float(value) < self.best)
        if better:
            self.best, self.kept["best"] = float(value), self.kept["previous"]

    def finish(self, trainer: L.Trainer) -> None:
        if self.history:
            picture = draw_drift(self.history, list(self.methods))
            moment = self.history[-1]
            images = {"xai/drift": ([picture], ["explanations compared with earlier ones"])}
            logger_adapters.log_images(
                trainer, images, logger_adapters.logged_step(trainer), moment["epoch"], file_type="png"
            )

    def state_dict(self) -> dict[str, Any]:
        kept = {ref: {name: S.half() for name, S in maps.items()} for ref, maps in self.kept.items()}
        told = {"kept": kept, "ids": self.ids, "best": self.best, "history": self.history}
        return {**super().state_dict(), **told}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.ids = saved.read("ids", list_of(read_integer), [])
        self.kept = saved.read("kept", self.references, {})
        self.best = saved.read("best", optional(read_number), None)
        self.history = saved.read("history", list_of(look), [])

    def references(self, kept: Any) -> dict[str, Maps]:
        """The maps of a checkpoint, which belong to the images and to each other."""
        found = mapping_of(mapping_of(map_stack))(kept)
        shapes = {(name, S.shape) for reference in found.values() for name, S in reference.items()}
        if len(shapes) > len({name for name, _ in shapes}) or any(len(self.ids) != shape[0] for _, shape in shapes):
            raise ValueError(f"expected maps of {len(self.ids)} images, of one shape for each method, got {shapes}.")
        return found


def look(value: Any) -> dict[str, Any]:
    """An entry of the history."""
    return {
        **{key: read_count(value[key]) for key in ("epoch", "step")},
        "values": mapping_of(read_number)(value["values"]),
    }


def small(found: Explained) -> Maps:
    """The maps of the only view, as small as the journal keeps them, on a scale that half precision can hold."""
    maps: Maps = next(iter(found.maps.values()), {})
    shrunk = {name: shrink(S if S.ndim == 3 else S.flatten(1)[:, None]) for name, S in maps.items()}  # signals, volumes
    scaled = {name: S / S.flatten(1).abs().amax(1).clamp(min=1e-30)[:, None, None] for name, S in shrunk.items()}
    return {name: S.half().float() for name, S in scaled.items()}  # what a checkpoint holds, exactly


def compare(now: Tensor, then: Tensor) -> dict[str, Tensor]:
    """(1) and (2) of maps (n, h, w), NaN where one is constant or has no mass."""
    p, q = (S.abs().flatten(1).double() for S in (now, then))
    p, q = (m / m.sum(1, keepdim=True) for m in (p, q))  # NaN where there is no mass
    return {"similarity": spearman(now, then), "shift": (p - q).abs().sum(1) / 2}  # (1), (2)
