"""Run of `evaluate`: explain and score each batch, and store the numbers of each image."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from interpretable_training.attribution import degenerate
from interpretable_training.attribution.core.base import Attribution, full
from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.attribution.core.prepared_model import (
    DEVICES,
    Output,
    PreparedModel,
    prepare,
    prepare_model,
    unwrap,
)
from interpretable_training.attribution.core.scoring import Scoring, folding_of
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import BatchSource, annotations_of
from interpretable_training.metrics.core.base import Fact, ImageMetric, described
from interpretable_training.metrics.core.inputs import check_images
from interpretable_training.metrics.core.regions import of_class, rows_of
from interpretable_training.metrics.core.rescoring import ScoredBatch, in_unit_range, scores_of
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Reading, read_model

from .cache import Cache, Part
from .parts import has_labels, joined_parts, move_tensors, refuse_metrics, rows_of_maps
from .ranks import Peers
from .restricted_maps import Restricted, at_regions, explain_regions
from .warn_caller import warn_caller


class EvaluationRun:
    """Explain, score and store each batch of an evaluation."""

    def __init__(
        self,
        model: nn.Module,
        methods: dict[str, Attribution],
        metrics: dict[str, ImageMetric],
        target: str,
        multilabel: bool,
        output: Output,
        chunk_size: int | None,
        task: str | Task = "auto",
        reading: Reading | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        self.model, self.methods, self.metrics, self.target = model, methods, metrics, target
        self.multilabel, self.output, self.chunk_size = multilabel, output, chunk_size
        self.task, self.reading, self.scoring = task, reading, scoring or Scoring()

    def facts(self) -> dict[str, Fact]:
        """Return what decides the numbers, besides the metrics."""
        methods = {f"method {name}": described(method) for name, method in self.methods.items()}
        methods |= {f"maps of {name}": scaling(method) for name, method in self.methods.items()}
        module = unwrap(self.model)
        output = None if self.output is None else getattr(self.output, "__qualname__", str(self.output))
        model: dict[str, Fact] = {
            "model": type(module).__name__,
            "weights": checksum(*module.parameters(), *module.buffers()),
            "precision": precision_of(module) + self.scoring.fact(),
            "output": output,
        }
        task = self.task if isinstance(self.task, str) else repr(self.task)
        return {**model, "target": self.target, "multilabel": self.multilabel, "task": task, **methods}

    def speedups(self) -> dict[str, Fact]:
        """Return facts of the passes that do not decide the numbers, known after the run."""
        folding = folding_of(unwrap(self.model if self.reading is None else self.reading.network))
        compiled = self.scoring.compiled
        facts: dict[str, Fact] = {} if folding is None else {"batch norms": folding}
        return facts if compiled is None else {**facts, "compiled": compiled.fact()}

    def passports(self) -> dict[str, dict[str, Fact]]:
        return {name: metric.passport() for name, metric in self.metrics.items()}

    def run(self, source: BatchSource, cache: Cache, progress: bool, peers: Peers) -> tuple[list[Part], bool]:
        """Return the parts of all processes, in order, and whether none is missing."""
        parts, interrupted = [part for part in cache.load() if peers.claim(part.number)], False
        bar = tqdm(desc="evaluate", unit=" images", total=source.size(), disable=not progress or peers.rank > 0)
        bar.update(peers.count(sum(len(part.images) for part in parts)))
        try:
            for number, indices, picked in source.read_picked(peers.claim):
                if peers.stopped():
                    break
                check = not any(len(part.images) for part in parts)
                part = self.measure(number, indices, picked, check)
                cache.keep(part)
                parts.append(part)
                bar.update(peers.count(len(indices)) - bar.n)
        except KeyboardInterrupt:
            interrupted = True
            peers.stop()
        finally:
            bar.close()
        gathered = peers.share((parts, interrupted))
        if where := [rank for rank, (_, interrupted) in enumerate(gathered) if interrupted]:
            place = f" in process {', '.join(map(str, where))}" if peers.world > 1 else ""
            warn_caller(f"interrupted{place}: the table holds the images that were done")
        parts = [part for batch_parts, _ in gathered for part in batch_parts]
        return sorted(parts, key=lambda part: part.number), not where

    def measure(
        self,
        number: int,
        indices: list[int],
        picked: Picked,
        check: bool,
        explained: tuple[Tensor, Mapping[str, Tensor]] | None = None,
    ) -> Part:
        """Return the numbers of one batch.

        Args:
            number: of the batch.
            indices: of its images.
            picked: its images, labels and other entries.
            check: whether to refuse a model that returns no numbers at all.
            explained: classes (B,) and raw maps (B, H, W) of the methods, from a caller that has them already.
        """
        check_images(picked.images)
        device = next((p.device for p in self.model.parameters()), picked.images.device)
        picked = move_tensors(picked, device)
        ids, sample = torch.tensor(indices), None
        if self.reading is None:
            reading = read_model(self.model, picked, self.output, self.task, self.multilabel or None)
            self.reading, sample = replace(reading, sample=None), reading.sample
            refuse_metrics(self.reading.task, self.metrics)
        if self.reading.together:
            return self._measure_together(number, ids, picked, check, explained, sample)
        parts: list[Any] = []
        with prepare_model(self.reading.network, self.reading.output, scoring=self.scoring) as prepared:
            for i in range(len(ids)):
                row = picked.rows(slice(i, i + 1))
                shared = None if explained is None else rows_of_maps(explained, i)
                parts.append(self._measure_one(number, ids[i : i + 1], row, check and not parts, shared, prepared))
        return joined_parts(parts)

    def _measure_one(
        self,
        number: int,
        ids: Tensor,
        row: Picked,
        check: bool,
        explained: tuple[Tensor, Mapping[str, Tensor]] | None,
        prepared: PreparedModel,
    ) -> Part:
        """Return the numbers of one image whose scores follow a reference, or that has other inputs."""
        assert self.reading is not None
        bound, followed, example = self.reading.bind(prepared, row)
        target: Tensor | str = self.target if explained is None else explained[0]
        if target == "label" and explained is None:
            column = self.reading.task.label(followed, example)
            if column is None and has_labels(self.reading.task):
                return Part(number, ids[:0], torch.zeros(0, dtype=torch.long))
            target = "pred" if column is None else torch.tensor([column])
        return self._measure_prepared(
            bound, number, ids, row.images, target, annotations_of(row.rest), check, explained
        )

    def _measure_together(
        self,
        number: int,
        ids: Tensor,
        picked: Picked,
        check: bool,
        explained: tuple[Tensor, Mapping[str, Tensor]] | None,
        sample: Any,
    ) -> Part:
        assert self.reading is not None
        images, located = picked.images, annotations_of(picked.rest)
        target: Tensor | str = self.target if explained is None else explained[0]
        if self.target == "label" and self.reading.task.name in ("classification", "multilabel"):
            ids, images, classes, located = self._labeled(ids, images, picked.target, located)
            if not len(ids):
                return Part(number, ids, classes)
            target = classes
        elif self.target == "label" and explained is None:
            target = "pred"  # what the task explains by default
        with prepare_model(self.reading.network, self.reading.of_batches, scoring=self.scoring) as prepared:
            sample = sample if len(images) == len(picked.images) else None
            return self._measure_prepared(prepared, number, ids, images, target, located, check, explained, sample)

    def _measure_prepared(
        self,
        prepared: PreparedModel,
        number: int,
        ids: Tensor,
        images: Tensor,
        target: Tensor | str,
        located: dict[str, Any],
        check: bool,
        explained: tuple[Tensor, Mapping[str, Tensor]] | None,
        sample: Any = None,
    ) -> Part:
        """Return the numbers of images that a prepared model scores; `sample` is its output if it is known."""
        images = prepare(prepared, images)
        device = images.device
        prepared.rows[0] = len(images)
        with torch.no_grad():  # once, for the predicted class and the clean scores
            output = prepared.run_fast(images) if sample is None else sample
        chosen = prepared.resolve_in(output, target.to(device) if isinstance(target, Tensor) else target)
        assert isinstance(chosen, Tensor)  # the target is a tensor or a policy, never a function
        clean: dict[Hashable, Tensor] = {"images": scores_of(prepared, output, chosen)}
        if check:
            refuse_not_numbers(clean["images"], images)
        methods = {name: at_regions(method, images, located) for name, method in self.methods.items()}
        maps = explain_regions(methods, prepared, images, chosen) if explained is None else explained[1]
        part = Part(number, ids, chosen)
        for name, method in methods.items():
            self._score(part, name, full(maps[name].to(device)), prepared, images, chosen, clean, method, located)
        # A device is waited for here, when all of its work is queued.
        return Part(**apply_to_collection(vars(part), Tensor, Tensor.cpu))

    def _score(
        self,
        part: Part,
        name: str,
        S: Tensor,
        prepared: PreparedModel,
        images: Tensor,
        target: Any,
        clean: Any,
        method: Attribution,
        annotations: dict[str, Any],
    ) -> None:
        S = S.detach()
        part.degenerate[name] = degenerate(S)
        S = in_unit_range(method, S)
        scored = ScoredBatch(prepared, images, S, target, method, None, clean, self.chunk_size, annotations)
        part.values[name], part.curves[name] = {}, {}
        for key, metric in self.metrics.items():
            part.values[name][key] = metric.rows(scored)
            curves = metric.curves(scored)
            if curves:
                part.curves[name][key] = {kind: moments(s) for kind, s in curves.items()}

    def _labeled(
        self, ids: Tensor, images: Tensor, target: Tensor | None, annotations: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return indices, images, classes and annotations; with several labels a row for each positive class."""
        if target is None:
            raise ValueError(
                "expected batches (images, target) for target='label', got images alone; pass target='pred' to explain "
                "the predicted class."
            )
        if target.ndim != 1 + self.multilabel or (target.is_floating_point() and not self.multilabel):
            raise ValueError(
                f"expected targets {'(B, N) of zeros and ones' if self.multilabel else '(B,) of class numbers'}, got "
                f"{tuple(target.shape)} of {target.dtype}; see the argument multilabel, here {self.multilabel}."
            )
        if not self.multilabel:
            return ids, images, target, of_class(annotations, target)
        row, label = (target.cpu() > 0.5).nonzero(as_tuple=True)
        return ids[row], images[row.to(images.device)], label, of_class(rows_of(annotations, row), label)


def precision_of(module: nn.Module) -> str:
    """Return the fact in which precision a module runs."""
    kinds = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point())
    casts = [str(torch.get_autocast_dtype(d)).removeprefix("torch.") for d in DEVICES if torch.is_autocast_enabled(d)]
    return " and ".join(kinds or ["float32"]) + (f", autocast to {casts[0]}" if casts else "")


def scaling(method: Attribution) -> str:
    """Return the fact how maps come into [0, 1]."""
    whole = method.method if isinstance(method, Restricted) else method
    return "as the method returns them" if whole is None or whole.final else "scaled to [0, 1] by their range"


def refuse_not_numbers(scores: Tensor, images: Tensor) -> None:
    """Refuse a model that returns only NaN for images of numbers; single images are counted instead."""
    scores = scores[images.flatten(1).isfinite().all(1)]
    if len(scores) and bool(scores[:, 0].isnan().all()):
        raise RuntimeError(
            f"expected numbers from the model, got NaN or infinity for each of the {len(scores)} images of the first "
            "batch; are the weights of this checkpoint numbers, and the images normalized as in training?"
        )


def moments(s: Tensor) -> Tensor:
    """Return the number of curves (B, J), their sum and sum of squares, (3, J); without those that are not numbers."""
    known = ~s.isnan().any(1, keepdim=True)
    s = s.where(known, 0)
    return torch.stack([known.expand_as(s).sum(0).to(s), s.sum(0), (s**2).sum(0)])
