"""Images explained by several methods: the passes, in sizes that memory allows, and one method's failure alone."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.base import explain_prepared, full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model
from interpretable_training.attribution.core.targets import pick_logits, take
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import annotations_of
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.callbacks.watching.explained import Explained, joined, view
from interpretable_training.metrics.core.regions import pixels


def explain_panel(
    trainer: L.Trainer, scene: RunContext, methods: Mapping[str, Attribution], target: str | int, n: int
) -> Explained:
    """The images of this process among the first `n` of the panel, explained.

    Args:
        trainer: whose device the images go to.
        scene: what is watched.
        methods: name -> method.
        target: the class that is explained; where batches have no labels "label" is the predicted one.
        n: how many images, of all processes.
    """
    found = []
    for ids, picked in scene.batches(trainer, n):
        known = "pred" if target == "label" and picked.target is None else target
        options = scene.options.output, scene.multilabel
        part = explain_images(methods, scene.network, picked.images, picked.target, known, *options, ids)
        part.inside = objects(picked)
        found.append(part)
    return joined(found)


def objects(picked: Picked) -> Tensor | None:
    """Pixels of the objects (B, H, W), of a batch's masks or boxes."""
    annotations = annotations_of(picked.rest)
    if "mask" not in annotations and "boxes" not in annotations:
        return None
    return pixels(annotations, "auto", picked.images[:, 0].shape).cpu()


def explain_images(
    methods: Mapping[str, Attribution],
    network: nn.Module,
    images: Tensor,
    label: Tensor | None,
    target: str | int,
    output: Output = None,
    multilabel: bool = False,
    ids: list[int] | None = None,
) -> Explained:
    """Explain images in passes of bounded size; where memory runs out, in smaller ones."""
    with prepare_model(network, output) as prepared:
        ready = prepare(prepared, images)
        logits = torch.cat(passes(ready, lambda rows: observed_logits(prepared, ready[rows])))
        label = None if label is None else label.to(logits.device)
        label = label.clone() if label is not None and label.is_inference() else label
        told = None if label is None else label.cpu()
        found = Explained(ids or list(range(len(images))), ready.float().cpu(), told, logits.float().cpu(), multilabel)
        for name, classes in view(target, logits, label).items():
            maps = found.maps.setdefault(name, {})
            found.targets[name] = classes.cpu()
            maps.update(explain_each(methods, prepared, ready, classes, found.errors))
            for method, S in maps.items():
                bad = int((~S.flatten(1).isfinite()).any(1).sum())
                if bad:
                    found.errors[method] = Failure(ValueError("maps hold values that are not numbers"), method)
    return found


def explain_view(
    methods: Mapping[str, Attribution], prepared: PreparedModel, images: Tensor, classes: Tensor
) -> dict[str, Tensor]:
    """Raw maps of all methods, which share the passes that they can."""

    def some(rows: slice) -> dict[str, Tensor]:
        maps = explain_prepared(dict(methods), prepared, images[rows], take(classes, rows))
        return {name: full(S.detach()).cpu() for name, S in maps.items()}

    parts = passes(images, some)
    return {name: torch.cat([part[name] for part in parts]) for name in methods}


def explain_each(
    methods: Mapping[str, Attribution],
    prepared: PreparedModel,
    images: Tensor,
    classes: Tensor,
    errors: dict[str, Failure],
) -> dict[str, Tensor]:
    """Maps of all methods, or where one fails of those that work alone; why the others do not goes into `errors`."""
    with suppress(Exception):  # which of the methods it was shows when each is alone
        if len(methods) > 1:
            return explain_view(methods, prepared, images, classes)
    maps: dict[str, Tensor] = {}
    for name, method in methods.items():
        try:
            maps.update(explain_view({name: method}, prepared, images, classes))
        except Exception as error:  # counted and said by the caller
            errors[name] = Failure(error, name)
    return maps


def passes(images: Tensor, run: Callable[[slice], Any]) -> list[Any]:
    """What `run` returns for rows of the images, as many at once as memory allows."""
    parts: list[Any] = []
    in_chunks(lambda rows: parts.append(run(rows)), len(images), None, images)
    return parts


def observed_logits(prepared: PreparedModel, images: Tensor) -> Tensor:
    """Logits (B, N) without a graph."""
    with torch.no_grad():
        return pick_logits(prepared.run(images), prepared.output)
