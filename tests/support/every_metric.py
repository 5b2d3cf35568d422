"""Every metric in a cheap form, and what `update` may be given."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from interpretable_training import metrics
from interpretable_training.attribution import GradCAM
from interpretable_training.metrics.core.base import ImageMetric

ALL_METRICS: dict[str, type[ImageMetric]] = {
    name: kind
    for name in metrics.__all__
    if isinstance(kind := getattr(metrics, name), type) and issubclass(kind, ImageMetric)
}
METHOD = GradCAM(layer="4")  # of the fixture `network`
MAKE: dict[str, Any] = {
    "average_drop": metrics.AverageDrop,
    "average_increase": metrics.AverageIncrease,
    "average_gain": metrics.AverageGain,
    "average_drop_in_deletion": metrics.AverageDropInDeletion,
    "insertion": lambda: metrics.Insertion(5),
    "deletion": lambda: metrics.Deletion(5),
    "insertion_deletion": lambda: metrics.InsertionDeletion(3),
    "aopc": lambda: metrics.AOPC(4, 3),
    "road": lambda: metrics.ROAD((30, 70)),
    "infidelity": lambda: metrics.Infidelity(n=3),
    "single_deletion": lambda: metrics.SingleDeletion(2),
    "coherency": lambda: metrics.Coherency(METHOD),
    "complexity": metrics.Complexity,
    "adcc": lambda: metrics.ADCC(METHOD),
    "arcc": lambda: metrics.ARCC(METHOD, (30, 70)),
    "adcc_of_means": lambda: metrics.ADCC(METHOD, average="dataset"),
    "max_sensitivity": lambda: metrics.MaxSensitivity(METHOD, n=2),
    "official_metric": metrics.OfficialMetric,
    "localization_error": lambda: metrics.LocalizationError(iou=True),
    "energy_localization_error": lambda: metrics.EnergyLocalizationError(0.5, iou=True),
    "box_accuracy": lambda: metrics.BoxAccuracy(steps=4),
    "pointing_game": metrics.PointingGame,
    "energy_pointing_game": metrics.EnergyPointingGame,
    "pixel_f1": metrics.PixelF1,
    "px_ap": lambda: metrics.PxAP(7),
    "pixel_f1_per_box": lambda: metrics.PixelF1("casme"),
    "saliency_metric": metrics.SaliencyMetric,
    "plain_accuracy": metrics.PlainAccuracy,
    "object_accuracy": metrics.ObjectAccuracy,
    "background_accuracy": metrics.BackgroundAccuracy,
    "other_background_accuracy": metrics.OtherBackgroundAccuracy,
    "top_replaced_accuracy": lambda: metrics.TopReplacedAccuracy(20),
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
WITHOUT_MAPS = ("plain_accuracy", "object_accuracy", "background_accuracy", "other_background_accuracy")
WITH_MAPS = tuple(name for name in MAKE if name not in WITHOUT_MAPS)
EACH_IMAGE_ALONE = tuple(name for name in MAKE if name != "other_background_accuracy")  # whatever its batch
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
