"""`evaluate`: methods x metrics over a data set, every pass once."""

import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from interpretable_training.attribution import FakeCAM, RandomMap, degenerate, normalize
from interpretable_training.attribution.base import Attribution, explain_prepared, full, name_methods
from interpretable_training.attribution.maps import one_of
from interpretable_training.attribution.observe import Observed, Output, observe, prepare, same_generators, unwrap

from .base import Fact, ImageMetric, as_tuple, checksum, described
from .cache import Cache, Part
from .evidence import Evidence
from .feed import Feed, Split
from .table import Table

CONTROLS: dict[str, Attribution] = {"fakecam": FakeCAM(), "random": RandomMap()}


@same_generators()
def evaluate(
    model: nn.Module,
    methods: Attribution | Mapping[str, Attribution] | Sequence[Attribution],
    metrics: ImageMetric | Mapping[str, ImageMetric] | Sequence[ImageMetric],
    data: Any,
    target: Literal["label", "pred", "least"] = "label",
    max_images: int | None = None,
    *,
    reference: str | None = None,
    controls: bool = True,
    split: Split = "val",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    multilabel: bool | None = None,
    output: Output = None,
    chunk_size: int | None = None,
    cache: str | Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Measure methods by metrics on the images of `data`.

    Each image is explained once by each method; each masked image is scored once, however many metrics ask for it.
    Maps are brought into [0, 1]. Under `torch.distributed` the batches are shared among the processes, all of which
    get the whole table. Ctrl-C ends it with the images that are done.

    Args:
        model: any classifier; it runs on the device on which it is and stays as it is.
        methods: name -> method, or a list, whose names are those of the classes in lower case.
        metrics: name -> metric, or a list, whose names are those of the classes in snake case.
        data: a data module, a loader, a data set, (images, target) or an iterable of batches.
        target: the class that is explained and scored: the "label", the predicted ("pred") or "least" likely one.
        max_images: how many images, chosen by the seed; by default all.
        reference: the method that the others are compared with; by default the first.
        controls: add `fakecam` and `random`, which know nothing of the model.
        split: of a data module.
        mean: of the images' normalization, for masking with black; by default that of the data module.
        std: see `mean`.
        multilabel: whether targets (B, N) hold a 0 or 1 per class: each positive class of an image is a row, scored by
            its sigmoid; by default what the data module says, else no.
        output: which part of the model's output are the logits.
        chunk_size: images per pass; by default what suits the device and the image size.
        cache: a folder that keeps what is done; an evaluation with the same folder goes on from there.
        resamples: how often the bootstrap draws.
        seed: of the choice of images and of the bootstrap.
        progress: whether to show a progress bar.
    """
    one_of("target", target, "label", "pred", "least")
    if resamples < 1:
        raise ValueError(f"expected resamples of at least 1, got {resamples}.")
    torch.default_generator.manual_seed(seed)  # what a loader draws is the same in every process and every time
    feed = Feed(data, max_images, split, seed)
    if multilabel is None:
        multilabel = bool(getattr(data, "multilabel", False))
    mean, std = as_tuple(feed.mean if mean is None else mean), as_tuple(feed.std if std is None else std)
    named = name_methods(methods)
    first = next(iter(named)) if reference is None and named else reference
    added = {name: control for name, control in CONTROLS.items() if controls and name not in named}
    named |= added
    if first not in named:
        raise ValueError(f"expected at least one method, and a reference among {list(named)}, got {first!r}.")
    for name, method in named.items():
        of_package("attribution", name, method, Attribution)
    measured = {name: metric.adapted(mean, std, multilabel) for name, metric in name_metrics(metrics).items()}
    for metric in measured.values():
        if hasattr(metric, "attribution"):
            metric.attribution = None  # the passport's "explained again by": here each method explains its own maps
    work = Work(model, named, measured, target, multilabel, output, chunk_size)
    facts = {**work.facts(), "images": max_images, "split": split, "seed": seed}
    parts, complete = work.run(feed, Cache(cache, facts, work.passports(), feed), progress)
    return table_of(parts, measured, facts, first, list(added), complete, resamples, seed)


class Work:
    """What is done with each batch."""

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
        """What decides the numbers beside the metrics."""
        methods = {f"method {name}": described(method) for name, method in self.methods.items()}
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

    def run(self, feed: Feed, cache: Cache, progress: bool) -> tuple[list[Part], bool]:
        """The parts of all processes, in order, and whether none is missing."""
        shared = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        parts, complete = cache.load(lambda n: n % world == rank), True
        done = {part.number for part in parts}
        bar = tqdm(desc="evaluate", unit=" images", total=feed.size(), disable=not progress or rank > 0)
        bar.update(sum(len(part.images) for part in parts) * world)
        try:
            for number, indices, images, target in feed.read(lambda n: n not in done and n % world == rank):
                check = not any(len(part.images) for part in parts)
                part = self.measure(number, indices, images, target, check)
                cache.keep(part)
                parts.append(part)
                bar.update(len(indices) * world)
        except KeyboardInterrupt:
            complete = False
            warnings.warn("interrupted: the table holds the images that were done", stacklevel=4)
        finally:
            bar.close()
        if world > 1:
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, (parts, complete))
            parts = [part for found, _ in gathered for part in found]
            complete = all(whole for _, whole in gathered)
        return sorted(parts, key=lambda part: part.number), complete

    def measure(self, number: int, indices: list[int], images: Tensor, target: Tensor | None, check: bool) -> Part:
        """The numbers of one batch; `check` that the model returns numbers at all."""
        device = next((p.device for p in self.model.parameters()), images.device)
        ids, images = torch.tensor(indices), images.to(device)
        if self.target == "label":
            ids, images, classes = self._labeled(ids, images, target)
            if not len(ids):
                return Part(number, ids, classes)
        with observe(self.model, self.output) as observed:
            images = prepare(observed, images)
            with torch.no_grad():
                output = observed.run_fast(images)  # once, for the predicted class and the clean scores
            chosen = observed.resolve_in(output, classes.to(device) if self.target == "label" else self.target)
            clean: dict[Hashable, Tensor] = {"images": Evidence(observed).scores_in(output, chosen)}
            if check:
                refuse_not_numbers(clean["images"], images)
            maps = explain_prepared(self.methods, observed, images, chosen)
            part = Part(number, ids, chosen.cpu())  # type: ignore[union-attr]
            for name in self.methods:
                self._score(part, name, full(maps[name]), observed, images, chosen, clean)
        return part

    def _score(
        self, part: Part, name: str, S: Tensor, observed: Observed, images: Tensor, target: Any, clean: Any
    ) -> None:
        S = S.detach()
        part.degenerate[name] = degenerate(S).cpu()
        evidence = Evidence(observed, images, normalize(S), target, self.methods[name], None, clean, self.chunk_size)
        part.values[name], part.curves[name] = {}, {}
        for key, metric in self.metrics.items():
            part.values[name][key] = metric.rows(evidence).cpu()
            curves = metric.curves(evidence)
            if curves:
                part.curves[name][key] = {kind: moments(s) for kind, s in curves.items()}

    def _labeled(self, ids: Tensor, images: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, images and classes; with several labels a row for each positive class."""
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
            return ids, images, target
        row, label = (target.cpu() > 0.5).nonzero(as_tuple=True)
        return ids[row], images[row.to(images.device)], label


def table_of(
    parts: list[Part],
    metrics: dict[str, ImageMetric],
    facts: dict[str, Fact],
    reference: str,
    controls: list[str],
    complete: bool,
    resamples: int,
    seed: int,
) -> Table:
    """Parts of an evaluation as a table."""
    parts = [part for part in parts if len(part.images)]
    if not parts and not complete:
        raise KeyboardInterrupt("stopped before the first batch was done")
    if not parts:
        raise ValueError("expected at least one image with a class, got none; is the data set or the loader empty?")
    methods = list(parts[0].values)
    return Table(
        torch.cat([part.images for part in parts]),
        torch.cat([part.classes for part in parts]),
        {name: {key: torch.cat([part.values[name][key] for part in parts]) for key in metrics} for name in methods},
        {name: torch.cat([part.degenerate[name] for part in parts]) for name in methods},
        metrics,
        facts,
        {
            name: {
                key: {kind: sum(part.curves[name][key][kind] for part in parts) for kind in curves}  # type: ignore[misc]
                for key, curves in parts[0].curves[name].items()
            }
            for name in methods
        },
        reference,
        controls,
        complete,
        resamples,
        seed,
    )


def name_metrics(
    metrics: ImageMetric | Mapping[str, ImageMetric] | Sequence[ImageMetric],
) -> dict[str, ImageMetric]:
    """name -> metric; a list gets the names of the classes in snake case."""
    if isinstance(metrics, (Mapping, MetricCollection)):
        named = dict(metrics.items())
    else:
        listed = [metrics] if isinstance(metrics, Metric) else list(metrics)
        named = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(metric).__name__).lower(): metric for metric in listed}
        if len(named) < len(listed):
            raise ValueError("expected metrics of different classes in a list; name them in a dict: {'name': metric}.")
    if not named:
        raise ValueError("expected at least one metric, got none.")
    for name, metric in named.items():
        of_package("metrics", name, metric, ImageMetric)
    return named


def of_package(room: str, name: str, given: object, base: type) -> None:
    """Refuse what is not of ours."""
    if not isinstance(given, base):
        hint = f"the class {given.__name__}; write {given.__name__}()" if isinstance(given, type) else repr(given)
        raise TypeError(f"expected an object of interpretable_training.{room} as {name!r}, got {hint}.")


def refuse_not_numbers(scores: Tensor, images: Tensor) -> None:
    """An error where the model returns nothing but NaN for images of numbers; single images are counted instead."""
    scores = scores[images.flatten(1).isfinite().all(1)]
    if len(scores) and bool(scores[:, 0].isnan().all()):
        raise RuntimeError(
            f"expected numbers from the model, got NaN or infinity for each of the {len(scores)} images of the first "
            "batch; are the weights of this checkpoint numbers, and the images normalized as in training?"
        )


def moments(s: Tensor) -> Tensor:
    """How many curves (B, J) there are, their sum and sum of squares, (3, J); without those that are not numbers."""
    s = s[~s.isnan().any(1)].cpu()
    return torch.stack([torch.full_like(s[:1].sum(0), len(s)), s.sum(0), (s**2).sum(0)])
