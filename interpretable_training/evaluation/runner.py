"""Run of `evaluate`: explain and score each batch, and store the numbers of each image."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from interpretable_training.attribution import degenerate
from interpretable_training.attribution.core.base import Attribution, full
from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model, unwrap
from interpretable_training.batches.source import BatchSource
from interpretable_training.metrics.core.base import Fact, ImageMetric, described
from interpretable_training.metrics.core.inputs import check_images
from interpretable_training.metrics.core.regions import of_class, rows_of
from interpretable_training.metrics.core.rescoring import ScoredBatch, in_unit_range, scores_of

from .cache import Cache, Part
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
    ) -> None:
        self.model, self.methods, self.metrics, self.target = model, methods, metrics, target
        self.multilabel, self.output, self.chunk_size = multilabel, output, chunk_size

    def facts(self) -> dict[str, Fact]:
        """Return what decides the numbers, besides the metrics."""
        methods = {f"method {name}": described(method) for name, method in self.methods.items()}
        methods |= {f"maps of {name}": scaling(method) for name, method in self.methods.items()}
        module = unwrap(self.model)
        output = None if self.output is None else getattr(self.output, "__qualname__", str(self.output))
        model: dict[str, Fact] = {
            "model": type(module).__name__,
            "weights": checksum(*module.parameters(), *module.buffers()),
            "output": output,
        }
        return {**model, "target": self.target, "multilabel": self.multilabel, **methods}

    def passports(self) -> dict[str, dict[str, Fact]]:
        return {name: metric.passport() for name, metric in self.metrics.items()}

    def run(self, source: BatchSource, cache: Cache, progress: bool, peers: Peers) -> tuple[list[Part], bool]:
        """Return the parts of all processes, in order, and whether none is missing."""
        rank, world = peers.rank, peers.world
        parts, interrupted = cache.load(lambda n: n % world == rank), False
        done = {part.number for part in parts}
        bar = tqdm(desc="evaluate", unit=" images", total=source.size(), disable=not progress or rank > 0)
        bar.update(sum(len(part.images) for part in parts) * world)
        try:
            for number, indices, images, target, annotations in source.read_annotated(
                lambda n: n not in done and n % world == rank
            ):
                if peers.stopped():
                    break
                check = not any(len(part.images) for part in parts)
                part = self.measure(number, indices, images, target, check, annotations)
                cache.keep(part)
                parts.append(part)
                bar.update(len(indices) * world)
        except KeyboardInterrupt:
            interrupted = True
            peers.stop()
        finally:
            bar.close()
        gathered = peers.share((parts, interrupted))
        if where := [rank for rank, (_, interrupted) in enumerate(gathered) if interrupted]:
            place = f" in process {', '.join(map(str, where))}" if world > 1 else ""
            warn_caller(f"interrupted{place}: the table holds the images that were done")
        parts = [part for batch_parts, _ in gathered for part in batch_parts]
        return sorted(parts, key=lambda part: part.number), not where

    def measure(
        self,
        number: int,
        indices: list[int],
        images: Tensor,
        target: Tensor | None,
        check: bool,
        annotations: Mapping[str, Any] | None = None,
        explained: tuple[Tensor, Mapping[str, Tensor]] | None = None,
    ) -> Part:
        """Return the numbers of one batch.

        Args:
            number: of the batch.
            indices: of its images.
            images: (B, C, H, W).
            target: labels, or None.
            check: whether to refuse a model that returns no numbers at all.
            annotations: what `annotations_of` returns for the batch.
            explained: classes (B,) and raw maps (B, H, W) of the methods, from a caller that has them already.
        """
        images = check_images(images)
        device = next((p.device for p in self.model.parameters()), images.device)
        ids, images, located = torch.tensor(indices), images.to(device), dict(annotations or {})
        if self.target == "label":
            ids, images, classes, located = self._labeled(ids, images, target, located)
            if not len(ids):
                return Part(number, ids, classes)
        with prepare_model(self.model, self.output) as prepared:
            images = prepare(prepared, images)
            with torch.no_grad():
                output = prepared.run_fast(images)  # once, for the predicted class and the clean scores
            target_of = classes if self.target == "label" else self.target if explained is None else explained[0]
            chosen = prepared.resolve_in(output, target_of.to(device) if isinstance(target_of, Tensor) else target_of)
            clean: dict[Hashable, Tensor] = {"images": scores_of(prepared, output, chosen)}
            if check:
                refuse_not_numbers(clean["images"], images)
            methods = {name: at_regions(method, images, located) for name, method in self.methods.items()}
            maps = explain_regions(methods, prepared, images, chosen) if explained is None else explained[1]
            part = Part(number, ids, chosen.cpu())  # type: ignore[union-attr]
            for name, method in methods.items():
                self._score(part, name, full(maps[name].to(device)), prepared, images, chosen, clean, method, located)
        return part

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
        part.degenerate[name] = degenerate(S).cpu()
        S = in_unit_range(method, S)
        scored = ScoredBatch(prepared, images, S, target, method, None, clean, self.chunk_size, annotations)
        part.values[name], part.curves[name] = {}, {}
        for key, metric in self.metrics.items():
            part.values[name][key] = metric.rows(scored).cpu()
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
    s = s[~s.isnan().any(1)].cpu()
    return torch.stack([torch.full_like(s[:1].sum(0), len(s)), s.sum(0), (s**2).sum(0)])
