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
    BoxAccuracy,
    Coherency,
    Complexity,
    Deletion,
    EnergyLocalizationError,
    EnergyPointingGame,
    Insertion,
    InsertionDeletion,
    LocalizationError,
    MaxSensitivity,
    OfficialMetric,
    PixelF1,
    PointingGame,
    PxAP,
    SaliencyMetric,
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
    "official_metric": OfficialMetric,
    "localization_error": lambda: LocalizationError(iou=True),
    "energy_localization_error": lambda: EnergyLocalizationError(0.5, iou=True),
    "box_accuracy": lambda: BoxAccuracy(steps=4),
    "pointing_game": PointingGame,
    "energy_pointing_game": EnergyPointingGame,
    "pixel_f1": PixelF1,
    "px_ap": lambda: PxAP(7),
    "pixel_f1_per_box": lambda: PixelF1("casme"),
    "saliency_metric": SaliencyMetric,
}
WITHOUT_MODEL = (
    "complexity",
    "localization_error",
    "energy_localization_error",
    "box_accuracy",
    "pointing_game",
    "energy_pointing_game",
    "pixel_f1",
    "pixel_f1_per_box",
    "px_ap",
)
WITHOUT_IMAGES = (*WITHOUT_MODEL, "saliency_metric")  # what does not look at every pixel of the images


def where(images: Tensor) -> dict[str, Tensor]:
    """Where an object is in each image."""
    boxes = torch.tensor([[1.0, 1.0, 5.0, 4.0]]).expand(len(images), 1, 4)
    return {"mask": images[:, 0] > 0, "boxes": boxes, "ignore_mask": images[:, 1] > 1}


def batch(metric: Metric, model: nn.Module, images: Tensor, saliency: Tensor, target: Any) -> dict[str, Any]:
    """The keywords of these that the metric's update takes."""
    given = {"model": model, "images": images, "saliency": saliency, "target": target}
    return metric._filter_kwargs(**given, **where(images))


def sums(metric: Metric) -> dict[str, Tensor]:
    """The states of a metric."""
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def same_sums(a: Metric, b: Metric, atol: float = 1e-12) -> None:
    """Counts are equal, and so are the means up to rounding."""
    ours, theirs = sums(a), sums(b)
    scale = max(1.0, float(theirs["count"]))
    for name in ours:
        torch.testing.assert_close(ours[name] / scale, theirs[name] / scale, rtol=1e-12, atol=atol, equal_nan=True)
