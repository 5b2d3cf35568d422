"""Log how faithful explanations are while the model trains, as numbers that other callbacks can monitor."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey, Picked
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.callbacks.watching.explanations import Explained
from interpretable_training.callbacks.watching.options import (
    Images,
    OnError,
    Stages,
    common_options,
    suggest_options,
)
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.callbacks.watching.session import WatchSession
from interpretable_training.callbacks.watching.startup_report import Line
from interpretable_training.evaluation.cache import Part
from interpretable_training.evaluation.evaluate import CONTROLS, name_metrics
from interpretable_training.evaluation.parts import refuse_metrics
from interpretable_training.evaluation.restricted_maps import Restricted
from interpretable_training.evaluation.runner import EvaluationRun, scaling
from interpretable_training.metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.report.value_readers import list_of, mapping_of, read_number, read_text
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen

PROBED = 1  # images of the start-up report; each takes many passes
Metrics = ImageMetric | dict[str, ImageMetric] | list[ImageMetric]


def default_metrics() -> list[ImageMetric]:
    """Return drop, increase and gain, and both curves in ten steps: 24 passes for each image."""
    return [AverageDrop(), AverageIncrease(), AverageGain(), Insertion(steps=10), Deletion(steps=10)]


class InterpretabilityMetrics(Watcher):
    """Log `xai/<method>/<metric>`, the means over a fixed set of images; with the stage first in test and validate.

    `ModelCheckpoint(monitor="xai/gradcam/average_gain")`, `EarlyStopping`, schedulers and sweeps see them in the same
    validation, wherever the callback stands in the list.

    >>> list(InterpretabilityMetrics(GradCAM("layer4"), [AverageDrop(), AverageGain()]).metrics)
    ['average_drop', 'average_gain']

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        metrics: name -> metric, or a list; by default drop, increase, gain, insertion and deletion; of a regression the
            last two.
        max_images: how many images, split among the processes; by default 64, fewer where epochs are short, see
            `Watcher`.
        images: which images; see `Watcher`.
        target: the class that is explained and scored: "label" (where batches have none the predicted one), "pred" or
            "least".
        controls: whether to measure Fake-CAM and a random map too, which ignore the model.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    default_images = 64

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        metrics: Metrics | None = None,
        max_images: int | None = None,
        images: Images = "panel",
        target: Literal["label", "pred", "least"] = "label",
        controls: bool = False,
        chunk_size: int | None = None,
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
        super().__init__(**common_options(locals()))
        one_of("target", target, "label", "pred", "least")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        if controls:
            self.methods = {**self.methods, **{name: c for name, c in CONTROLS.items() if name not in self.methods}}
        self.by_default = metrics is None
        self.metrics = name_metrics(default_metrics() if metrics is None else metrics)
        self.target, self.chunk_size = target, chunk_size
        self.best: dict[str, float] = {}
        self.described: set[str] = set()  # metrics whose passports are in the journal

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        passports = {name: metric.passport() for name, metric in self.metrics.items()}
        maps = {name: scaling(method) for name, method in self.methods.items()}
        return {"methods": methods, "maps": maps, "metrics": passports, "target": self.target, **super().settings()}

    def _adapted(self, context: RunContext) -> dict[str, ImageMetric]:
        """Return the metrics, which mask in the colors of the images where these are known."""
        task = context.reading.task
        if self.by_default and not task.bounded:
            self.metrics = name_metrics([Insertion(steps=10, score="logit"), Deletion(steps=10, score="logit")])
        refuse_metrics(task, self.metrics)
        mean, std = context.colors.mean, context.colors.std
        if mean is None and not context.colors.guessed:
            mean, std = (0.0,), (1.0,)
        return {name: metric.adapted(mean, std, context.multilabel) for name, metric in self.metrics.items()}

    def start(self, session: WatchSession, context: RunContext) -> None:
        passports = {name: metric.passport() for name, metric in self._adapted(context).items()}
        for name, passport in passports.items():
            if name not in self.described:
                session.write("passport", None, metric=name, facts=passport)
        self.described |= set(passports)
        logger_adapters.log_facts(session.trainer, {"passports": passports})
        wants_high = {
            f"xai/{m}/{name}": metric.wants_high
            for m in self.methods
            for name, metric in self.metrics.items()
            if metric.wants_high is not None
        }
        logger_adapters.log_directions(session.trainer, wants_high)

    def start_lines(self, session: WatchSession, context: RunContext) -> list[Line]:
        n = min(self.n, context.size(session.trainer))
        for _ in range(2):  # the first run is slower
            session.memo.clear()  # else the time may lack what another callback computed
            start, measured = time.perf_counter(), self._measure(session, context, PROBED)
            seconds = (time.perf_counter() - start) * n / max(1, min(PROBED, n))
        self.budget.estimate = seconds
        failed = [("failed", str(why)) for why in measured.errors.values()]
        return [*failed, ("an explanation step", f"about {seconds:.2g} s for {n} images")]

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> "Measurements":
        return self._measure(session, context, self.budget.keep(self.n))

    def _measure(self, session: WatchSession, context: RunContext, n: int) -> "Measurements":
        """Return the numbers of this process's images among the first `n`."""
        measured, metrics = Measurements(), self._adapted(context)
        for ids, picked, explained in self._batches(session, context, n):
            target = "pred" if self.target == "label" and picked.target is None else self.target
            options = (
                metrics,
                target,
                context.multilabel,
                context.options.output,
                self.chunk_size,
                "auto",
                context.reading,
            )
            methods = self.methods
            if explained is not None:
                maps = next(iter(explained.maps.values()))
                methods = {name: method for name, method in methods.items() if name in maps}
                measured.errors |= {name: why for name, why in explained.errors.items() if name not in maps}
            with suppress(Exception):  # run alone below, each method shows whether it fails
                measured.add(EvaluationRun(context.network, methods, *options), ids, picked, explained)
                continue
            for name, method in methods.items():
                try:
                    measured.add(EvaluationRun(context.network, {name: method}, *options), ids, picked, explained)
                except Exception as error:  # counted by the base
                    measured.errors[name] = Failure(error, name)
        return measured

    def _batches(self, session: WatchSession, context: RunContext, n: int) -> Any:
        """Yield ids, batch and explanations; None where each run explains by itself.

        That is where maps depend on the boxes of a batch, or images have a row for each of several labels.
        """
        several = context.multilabel and self.target == "label"
        if several or any(isinstance(method, Restricted) for method in self.methods.values()):
            for ids, picked in context.batches(session.trainer, n):
                yield ids, picked, None
        else:
            yield from session.explain_batches(context, self.methods, self.target, n)

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        values: dict[str, float] = {}
        for method in self.methods:
            for name, metric in self.metrics.items():
                numbers = [
                    part.values[method][name] for measured in parts for part in measured.parts if method in part.values
                ]
                rows = torch.cat(numbers).double() if numbers else torch.full((1, metric.columns), math.nan)
                values[f"xai/{method}/{name}"] = float(metric.aggregate(rows.nanmean(0)))
                invalid = int(rows.isnan().any(1).sum()) if numbers else 0
                if invalid:
                    values[f"xai/{method}/{name}/invalid"] = float(invalid)
        self._keep_best(values, step)
        return values

    def _keep_best(self, values: Mapping[str, float], step: ExplanationStep) -> None:
        """Keep the best of each number of a fit, for the summary."""
        for method in self.methods if step.stage == "fit" else ():
            for name, metric in self.metrics.items():
                key = f"xai/{method}/{name}"
                better = max if metric.wants_high else min
                if not math.isnan(values[key]):
                    self.best[key] = better(self.best.get(key, values[key]), values[key])

    def finish(self, session: WatchSession) -> None:
        session.best |= self.best
        logger_adapters.log_summary(session.trainer, {f"best/{key}": value for key, value in self.best.items()})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "described": sorted(self.described)}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.best = saved.read("best", mapping_of(read_number), {})
        described: list[str] = saved.read("described", list_of(read_text), [])
        self.described = set(described)


@dataclass
class Measurements:
    """Numbers of the images of one process, and the failures of single methods."""

    parts: list[Part] = field(default_factory=list)
    errors: dict[str, Failure] = field(default_factory=dict)

    def add(self, run: EvaluationRun, ids: list[int], picked: Picked, explained: Explained | None) -> None:
        """Add the numbers of a batch; in halves, where memory does not suffice."""
        parts: list[Part] = []

        def measure(rows: slice) -> None:
            few, check, shared = picked.rows(rows), not self.parts and not parts, None
            if explained is not None:
                classes, maps = next(iter(explained.targets.values())), next(iter(explained.maps.values()))
                shared = classes[rows], {name: S[rows] for name, S in maps.items()}
            parts.append(run.measure(len(self.parts), ids[rows], few, check, shared))

        in_chunks(measure, len(ids), len(ids), picked.images)
        self.parts += parts
