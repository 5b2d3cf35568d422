"""Every metric in a cheap form, and what `update` may be given."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from interpretable_training.attribution import GradCAM
from interpretable_training.metrics import (
    ADCC,
    AOPC,
    ROAD,
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Insertion,
    InsertionDeletion,
    MaxSensitivity,
)

METHOD = GradCAM(layer="4")  # of the fixture `network`
MAKE: dict[str, Any] = {
    "average_drop": AverageDrop,
    "average_increase": AverageIncrease,
    "average_gain": AverageGain,
    "average_drop_in_deletion": AverageDropInDeletion,
    "insertion": lambda: Insertion(5),
    "deletion": lambda: Deletion(5),
    "insertion_deletion": lambda: InsertionDeletion(3),
    "aopc": lambda: AOPC(4, 3),
    "road": lambda: ROAD((30, 70)),
    "coherency": lambda: Coherency(METHOD),
    "complexity": Complexity,
    "adcc": lambda: ADCC(METHOD),
    "adcc_of_means": lambda: ADCC(METHOD, average="dataset"),
    "max_sensitivity": lambda: MaxSensitivity(METHOD, n=2),
}
WITHOUT_MODEL = ("complexity",)


def batch(metric: Metric, model: nn.Module, images: Tensor, saliency: Tensor, target: Any) -> dict[str, Any]:
    """The keywords of these that the metric's update takes."""
    return metric._filter_kwargs(model=model, images=images, saliency=saliency, target=target)


def sums(metric: Metric) -> dict[str, Tensor]:
    """The states of a metric."""
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def same_sums(a: Metric, b: Metric, atol: float = 1e-12) -> None:
    """Counts are equal, and so are the means up to rounding."""
    ours, theirs = sums(a), sums(b)
    scale = max(1.0, float(theirs["count"]))
    for name in ours:
        torch.testing.assert_close(ours[name] / scale, theirs[name] / scale, rtol=1e-12, atol=atol, equal_nan=True)
