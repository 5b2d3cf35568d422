"""Rows of batches that are measured one by one, and metrics that fit a task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interpretable_training.batches.read import Picked
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.tasks.base import Task

from .cache import Part


def move_tensors(picked: Picked, device: torch.device) -> Picked:
    """Return a batch whose tensors are on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: moved(part) for name, part in value.items()}
        if isinstance(value, list):
            return [moved(part) for part in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return replace(picked, images=moved(picked.images), target=moved(picked.target), rest=moved(picked.rest))


def rows_of_maps(explained: tuple[Tensor, Mapping[str, Tensor]], i: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the class and the maps of one image."""
    classes, maps = explained
    return classes[i : i + 1], {name: S[i : i + 1] for name, S in maps.items()}


def joined_parts(parts: list[Part]) -> Part:
    """Return the numbers of images that were measured one by one as those of their batch."""
    full = [part for part in parts if len(part.images)]
    if not full:
        return parts[0]
    first = full[0]
    joined = Part(first.number, torch.cat([p.images for p in full]), torch.cat([p.classes for p in full]))
    for name, values in first.values.items():
        joined.values[name] = {key: torch.cat([p.values[name][key] for p in full]) for key in values}
        joined.degenerate[name] = torch.cat([p.degenerate[name] for p in full])
        joined.curves[name] = {
            key: {kind: sum((p.curves[name][key][kind] for p in full[1:]), moments) for kind, moments in kinds.items()}
            for key, kinds in first.curves[name].items()
        }
    return joined


def has_labels(task: Task) -> bool:
    """Whether a task explains labels: a similarity or a number of an image has none."""
    return type(task).label is not Task.label and not (task.name == "embedding" and vars(task)["prototypes"] is None)


def fits_task(metric: ImageMetric, task: Task) -> bool:
    """Whether the numbers of a metric mean something for a task."""
    score = getattr(metric, "score", None)
    if (score == "accuracy" or metric.needs_classes) and not task.has_classes:
        return False
    return task.bounded or score not in ("prob", "sigmoid")


def refuse_metrics(task: Task, metrics: Mapping[str, ImageMetric]) -> None:
    """Raise an error for metrics that mean nothing for a task, with those that do."""
    wrong = [name for name, metric in metrics.items() if not fits_task(metric, task)]
    if wrong:
        fit = "Insertion(score='logit'), Deletion(score='logit'), AOPC(score='logit') and metrics of maps alone"
        fit = fit if not task.bounded else "metrics whose score is a probability, such as AverageDrop()"
        raise ValueError(f"expected metrics that mean something for {task.name}, got {wrong}; use {fit}.")
