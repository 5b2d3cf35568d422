"""How faithful explanations are while the model trains, as numbers that the project's other callbacks can watch."""

import math
import time
from contextlib import suppress
from typing import Any, Literal

import lightning as L
import torch

from interpretable_training.attribution import Attribution, GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import annotations_of
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.evaluation.cache import Part
from interpretable_training.evaluation.evaluate import CONTROLS, name_metrics
from interpretable_training.evaluation.runner import EvaluationRun, scaling
from interpretable_training.metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.report.value_readers import list_of, mapping_of, read_number, read_text

Metrics = ImageMetric | dict[str, ImageMetric] | list[ImageMetric]


FEW = 4  # images are tried at the start


def default_metrics() -> list[ImageMetric]:
    """Drop, increase and gain, and both curves in ten steps: 24 passes for each image."""
    return [AverageDrop(), AverageIncrease(), AverageGain(), Insertion(steps=10), Deletion(steps=10)]


class InterpretabilityMetrics(Watcher):
    """Logs `xai/<method>/<metric>` (`test/xai/...` in test), the means over a fixed set of images.

    `ModelCheckpoint(monitor="xai/gradcam/average_gain")`, `EarlyStopping`, schedulers and sweeps see them in the same
    validation, wherever the callback stands in the list.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        metrics: name -> metric, or a list; by default drop, increase, gain, insertion and deletion.
        max_images: how many images, split among the processes.
        images: which images; see `Watcher`.
        target: the class that is explained and scored: "label" (where batches have none the predicted one), "pred" or
            "least".
        controls: whether to measure Fake-CAM and a random map too, which know nothing of the model.
        chunk_size: images per pass; by default what suits the device and the image size.
        **watch: when to look and how to read batches; see `Watcher`.
    """

    def __init__(
        self,
        methods: Methods | None = None,
        metrics: Metrics | None = None,
        max_images: int = 64,
        images: Any = "panel",
        target: Literal["label", "pred", "least"] = "label",
        controls: bool = False,
        chunk_size: int | None = None,
        **watch: Any,
    ) -> None:
        super().__init__(max_images, images, **watch)
        one_of("target", target, "label", "pred", "least")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        if controls:
            self.methods = {**self.methods, **{name: c for name, c in CONTROLS.items() if name not in self.methods}}
        self.metrics = name_metrics(default_metrics() if metrics is None else metrics)
        self.target, self.chunk_size = target, chunk_size
        self.best: dict[str, float] = {}
        self.told: set[str] = set()  # metrics whose passports are logged

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        passports = {name: metric.passport() for name, metric in self.metrics.items()}
        maps = {name: scaling(method) for name, method in self.methods.items()}
        return {"methods": methods, "maps": maps, "metrics": passports, "target": self.target, **super().settings()}

    def adapted(self, scene: RunContext) -> dict[str, ImageMetric]:
        """The metrics, which mask in the colors of the images where these are known."""
        mean, std = scene.colors.mean, scene.colors.std
        if mean is None and not scene.colors.guessed:
            mean, std = (0.0,), (1.0,)
        return {name: metric.adapted(mean, std, scene.multilabel) for name, metric in self.metrics.items()}

    def begun(self, trainer: L.Trainer, scene: RunContext) -> None:
        passports = {name: metric.passport() for name, metric in self.adapted(scene).items()}
        for name, passport in passports.items():
            if name not in self.told:
                self.records.write(trainer, "passport", None, metric=name, facts=passport)
        self.told |= set(passports)
        logger_adapters.log_facts(trainer, {"passports": passports})

    def facts(self, trainer: L.Trainer, scene: RunContext) -> list[tuple[str, str]]:
        n = min(self.n, scene.size(trainer))
        start, found = time.perf_counter(), self.rows(trainer, scene, FEW)
        seconds = (time.perf_counter() - start) * n / max(1, min(FEW, n))
        failed = [("failed", str(why)) for why in found.errors.values()]
        return [*failed, ("a look", f"about {seconds:.2g} s for {n} images")]

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        return None if scene is None else self.rows(trainer, scene, self.thrift.keep(self.n))

    def rows(self, trainer: L.Trainer, scene: RunContext, n: int) -> "Measured":
        """The numbers of this process's images among the first `n`."""
        found, metrics = Measured(), self.adapted(scene)
        for ids, picked in scene.batches(trainer, n):
            target = "pred" if self.target == "label" and picked.target is None else self.target
            options = target, scene.multilabel, scene.options.output, self.chunk_size

            def measure(methods: dict[str, Attribution], *seen: Any, options: Any = options) -> None:
                work = EvaluationRun(scene.network, methods, metrics, *options)
                found.measure(work, *seen)

            with suppress(Exception):  # which of the methods it was shows when each is alone
                measure(self.methods, ids, picked)
                continue
            for name, method in self.methods.items():
                try:
                    measure({name: method}, ids, picked)
                except Exception as error:  # counted and said by the base
                    found.errors[name] = Failure(error, name)
        return found

    def scalars(self, parts: list[Any], moment: Moment) -> dict[str, float]:
        values: dict[str, float] = {}
        for method in self.methods:
            for name, metric in self.metrics.items():
                found = [
                    part.values[method][name] for measured in parts for part in measured.parts if method in part.values
                ]
                rows = torch.cat(found).double() if found else torch.full((1, metric.columns), math.nan)
                values[f"xai/{method}/{name}"] = float(metric.aggregate(rows.nanmean(0)))
                invalid = int(rows.isnan().any(1).sum()) if found else 0
                if invalid:
                    values[f"xai/{method}/{name}/invalid"] = float(invalid)
        self.remember(values, moment)
        return values

    def remember(self, values: dict[str, float], moment: Moment) -> None:
        """Keep the best of each number of a fit, for the summary."""
        for method in self.methods if moment.stage == "fit" else ():
            for name, metric in self.metrics.items():
                key = f"xai/{method}/{name}"
                better = max if metric.wants_high else min
                if not math.isnan(values[key]):
                    self.best[key] = better(self.best.get(key, values[key]), values[key])

    def finish(self, trainer: L.Trainer) -> None:
        logger_adapters.log_summary(trainer, {f"best/{key}": value for key, value in self.best.items()})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "told": sorted(self.told)}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.best = saved.read("best", mapping_of(read_number), {})
        self.told = set(saved.read("told", list_of(read_text), []))


class Measured:
    """The numbers of a process's images, and why some methods have none."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.errors: dict[str, Failure] = {}

    def measure(self, work: EvaluationRun, ids: list[int], picked: Picked) -> None:
        """Add those of a batch; in halves, where memory does not suffice."""
        parts: list[Part] = []

        def some(rows: slice) -> None:
            few = picked.rows(rows)
            check = not self.parts and not parts
            where = annotations_of(few.rest)
            parts.append(work.measure(len(self.parts), ids[rows], few.images, few.target, check, where))

        in_chunks(some, len(ids), len(ids), picked.images)
        self.parts += parts
