"""`evaluate`: methods x metrics over a data set, every pass once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from interpretable_training.attribution import FakeCAM, RandomMap
from interpretable_training.attribution.core.base import Attribution, Methods, name_methods, of_package
from interpretable_training.attribution.core.compiled_passes import CompiledPasses
from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.prepared_model import Output, unwrap
from interpretable_training.attribution.core.ranges import check_normalization, check_ranges
from interpretable_training.attribution.core.scoring import Scoring
from interpretable_training.attribution.core.sharded_parameters import is_sharded
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.batches.source import BatchSource, Split
from interpretable_training.metrics.core.base import Fact, ImageMetric, as_tuple
from interpretable_training.metrics.network_dissection import UnitIoU
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.choose import task_named

from .cache import Cache, Part
from .ranks import Peers
from .runner import EvaluationRun, precision_of
from .table import Table

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
CONTROLS: dict[str, Attribution] = {"fakecam": FakeCAM(), "random": RandomMap()}


@same_generators()
def evaluate(
    model: nn.Module,
    methods: Methods,
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
    image_key: Key = None,
    label_key: LabelKey = None,
    task: str | Task = "auto",
    chunk_size: int | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    cache: str | Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Measure methods by metrics on the images of `data`.

    Each image is explained once by each method; each masked image is scored once, however many metrics ask for it.
    Maps are scaled to [0, 1] by their range, unless the method is `final`: its maps are in [0, 1] already. Under
    `torch.distributed` the batches are shared among the processes, all of which get the whole table; of a model whose
    parameters are spread over them (FSDP2, tensor parallelism) each process does all batches. Ctrl-C ends it with the
    images that are done. A process that fails or is interrupted ends the others after the batch at which they are, with
    its reason; one that is alone in calling `evaluate` ends after five minutes.

    >>> from interpretable_training.attribution import GradCAM, LayerCAM
    >>> from interpretable_training.metrics import AverageDrop
    >>> table = evaluate(network, [GradCAM(), LayerCAM()], AverageDrop(), (images, target), progress=False)
    >>> list(table.values)
    ['gradcam', 'layercam', 'fakecam', 'random']

    Args:
        model: any network or LightningModule; it runs on the device on which it is and stays as it is.
        methods: name -> method, or a list, whose names are those of the classes in lower case; names such as "GradCAM"
            stand for methods with their defaults.
        metrics: name -> metric, or a list, whose names are those of the classes in snake case.
        data: a data module, a loader, a data set, (images, target) or an iterable of batches.
        target: the class that is explained and scored: the "label", the predicted ("pred") or "least" likely one.
        max_images: how many images, chosen by the seed; by default all.
        reference: the method that the others are compared with; by default the first.
        controls: add `fakecam` and `random`, which ignore the model.
        split: of a data module.
        mean: of the images' normalization, for masking with black; by default that of the data module.
        std: see `mean`.
        multilabel: whether targets (B, N) hold a 0 or 1 per class: each positive class of an image is a row, scored by
            its sigmoid; by default what the data module says, else no.
        output: which part of the model's output are the logits.
        image_key: the images in a batch: name, index or a function of the batch; by default they are found.
        label_key: the same of the labels; False if there are none.
        task: what the model is for, by name or as a `Task`; "auto" finds it in what the model returns.
        chunk_size: images per pass; by default what suits the device and the image size.
        precision: of passes without gradient: "bf16" is nearly twice as fast on processors that have bfloat16.
        compile: whether torch compiles passes without gradient, after the first 32 of a shape; for long evaluations.
        cache: a folder that keeps what is done; an evaluation with the same folder goes on from there.
        resamples: how often the bootstrap draws.
        seed: of the choice of images and of the bootstrap.
        progress: whether to show a progress bar.
    """
    one_of("target", target, "label", "pred", "least")
    one_of("precision", precision, *DTYPES)
    _check_options(locals())
    with Peers(not is_sharded(model)) as peers:
        torch.default_generator.manual_seed(seed)  # what a loader draws is the same in every process and every time
        source = BatchSource(data, max_images, split, seed, image_key, label_key)
        if multilabel is None:
            multilabel = bool(getattr(data, "multilabel", False))
        named = name_methods(methods)
        first = next(iter(named)) if reference is None and named else reference
        added = {name: control for name, control in CONTROLS.items() if controls and name not in named}
        named |= added
        if first not in named:
            raise ValueError(f"expected at least one method, and a reference among {list(named)}, got {first!r}.")
        normalization = source.mean if mean is None else mean, source.std if std is None else std
        measured = _adapted(name_metrics(metrics), *normalization, multilabel)
        scoring = Scoring(True, DTYPES[precision], CompiledPasses() if compile else None)
        work = EvaluationRun(model, named, measured, target, multilabel, output, chunk_size, task, scoring=scoring)
        facts = {**work.facts(), **key_facts(image_key, label_key), "images": max_images, "split": split, "seed": seed}
        task_named(task)
        parts, complete = work.run(source, Cache(cache, facts, work.passports(), source), progress, peers)
    return table_of(parts, measured, facts | work.speedups(), first, list(added), complete, resamples, seed)


def key_facts(image_key: Key, label_key: LabelKey) -> dict[str, Fact]:
    """Return the keys of batches that are given, as text."""
    keys = {"image_key": image_key, "label_key": label_key}
    return {name: getattr(key, "__qualname__", str(key)) for name, key in keys.items() if key is not None}


def _adapted(metrics: Mapping[str, ImageMetric], mean: Any, std: Any, multilabel: bool) -> dict[str, ImageMetric]:
    """Return copies of metrics for the normalization and labels of the data."""
    check_normalization(mean, std)
    copies = {name: metric.adapted(as_tuple(mean), as_tuple(std), multilabel) for name, metric in metrics.items()}
    for metric in copies.values():
        if hasattr(metric, "attribution"):
            metric.attribution = None  # the passport's "explained again by": here each method explains its own maps
    return copies


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse numbers of `evaluate` that are out of their ranges, and switches that are not True or False."""
    unwrap(options["model"])
    numbers = ("max_images", "chunk_size", "resamples", "seed")
    check_ranges("evaluate", {name: options[name] for name in numbers}, ["max_images", "chunk_size"])
    for name in ("controls", "multilabel", "progress", "compile"):
        if not isinstance(options[name], bool) and not (name == "multilabel" and options[name] is None):
            raise TypeError(f"expected {name} as True or False, got {options[name]!r:.100}.")
    if options["cache"] is not None and not isinstance(options["cache"], (str, Path)):
        raise TypeError(f"expected cache as the path of a folder, got {options['cache']!r:.100}.")
    kind = precision_of(unwrap(options["model"]))
    if options["precision"] != "fp32" and kind != "float32":
        raise ValueError(f"expected a float32 model without autocast for precision='bf16', got {kind}; leave one out.")
    if options["cache"] is not None and is_sharded(options["model"]):
        raise ValueError(
            "expected cache=None for a model whose parameters are spread over processes, which all measure the same "
            f"batches, got {str(options['cache'])!r}; leave out cache=."
        )
    if options["reference"] is not None and not isinstance(options["reference"], str):
        raise TypeError(f"expected reference as the name of a method, got {options['reference']!r:.100}.")


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
    """Return the parts of an evaluation as a table."""
    parts = [part for part in parts if len(part.images)]
    if not parts and not complete:
        raise KeyboardInterrupt("stopped before the first batch was done")
    if not parts:
        raise ValueError("expected at least one image with a class, got none; is the data set or the loader empty?")
    methods = list(parts[0].values)
    return Table(
        images=torch.cat([part.images for part in parts]),
        classes=torch.cat([part.classes for part in parts]),
        values={
            name: {key: torch.cat([part.values[name][key] for part in parts]) for key in metrics} for name in methods
        },
        degenerate={name: torch.cat([part.degenerate[name] for part in parts]) for name in methods},
        metrics=metrics,
        facts=facts,
        curves={
            name: {
                key: {kind: sum(part.curves[name][key][kind] for part in parts) for kind in curves}  # type: ignore[misc]
                for key, curves in parts[0].curves[name].items()
            }
            for name in methods
        },
        reference=reference,
        controls=controls,
        complete=complete,
        resamples=resamples,
        seed=seed,
    )


def name_metrics(
    metrics: ImageMetric | Mapping[str, ImageMetric] | Sequence[ImageMetric],
) -> dict[str, ImageMetric]:
    """Return name -> metric; a list gets the names of the classes in snake case."""
    if isinstance(metrics, (Mapping, MetricCollection)):
        named = dict(metrics.items())
    else:
        alone = isinstance(metrics, (Metric, type, torch.Tensor)) or not isinstance(metrics, Iterable)
        listed: list[Any] = [metrics] if alone else list(metrics)  # type: ignore[arg-type]
        kinds = [metric if isinstance(metric, type) else type(metric) for metric in listed]
        names = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower() for kind in kinds]
        named = dict(zip(names, listed))
        if len(named) < len(listed):
            raise ValueError(
                f"expected metrics of different classes, got {names}; name them in a dict: {{'name': metric}}."
            )
    if not named:
        raise ValueError("expected at least one metric, got none.")
    for name, metric in named.items():
        if isinstance(metric, UnitIoU) or metric is UnitIoU:
            raise TypeError(
                "expected a metric of maps, got UnitIoU, which measures the units of a layer; call "
                "measure_units(model, data, layer) instead."
            )
        of_package("metrics", name, metric, ImageMetric)
    return named
