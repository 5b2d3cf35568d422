"""Training of a network for segmentation or detection on pairs of images and their masks or boxes."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.ops import box_iou

from interpretable_training.batches.read import pick
from interpretable_training.models import build_network

from .plain_module import PlainModule, SchedulerCallable


class DenseModule(PlainModule):
    """Base of modules whose batches are images with masks or boxes; logs `loss` and one metric.

    >>> DenseModule("tiny_unet", 3)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 3, 16, 16])

    Args:
        network: A name that `build_network` knows, or any module.
        num_classes: Number of classes, the background included.
        optimizer: Function from parameters to an optimizer.
        scheduler: Function from an optimizer to a scheduler that steps after each epoch.
    """

    metric_name = "metric"

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_arguments(network=network)
        self.network = build_network(network, num_classes) if isinstance(network, str) else network
        self.num_classes, self.optimizer, self.scheduler = num_classes, optimizer, scheduler
        self.val_metric, self.test_metric = self.new_metric(), self.new_metric()

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def new_metric(self) -> Metric:
        """Return the metric of a split."""
        return MeanMetric()

    def update(self, metric: Metric, batch: Any) -> None:
        """Add a batch to the metric of its split."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement update(metric, batch).")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.update(self.val_metric, batch)
        self.log(f"val/{self.metric_name}", self.val_metric, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.update(self.test_metric, batch)
        self.log(f"test/{self.metric_name}", self.test_metric)


class Segmenter(DenseModule):
    """Train a network (B, C, H, W) by the cross-entropy of each pixel; logs `train/loss` and `val/iou`.

    >>> Segmenter("tiny_unet", 3).network.head.out_channels
    3

    `DenseModule` describes the arguments.
    """

    metric_name = "iou"

    def new_metric(self) -> Metric:
        return MulticlassJaccardIndex(self.num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, mask = pick(batch, strict=True).pair()
        loss = nn.functional.cross_entropy(self(images), mask)
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def update(self, metric: Metric, batch: Any) -> None:
        images, mask = pick(batch, strict=True).pair()
        metric.update(self(images).argmax(1), mask)


class Detector(DenseModule):
    """Train a detector of torchvision by its own losses.

    Logs `train/loss`, and `val/detected`: the share of images whose most probable detection has the class of the
    labeled box that it overlaps by an IoU of at least 0.5.

    >>> Detector("tiny_detector", 3).metric_name
    'detected'

    `DenseModule` describes the arguments.
    """

    metric_name = "detected"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.network(list(images), targets)
        loss = sum(losses.values())
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def update(self, metric: Metric, batch: Any) -> None:
        images, targets = batch
        for detected, target in zip(self.network(list(images)), targets):
            metric.update(float(is_detected(detected, target)))


def is_detected(detected: dict[str, Tensor], target: dict[str, Tensor]) -> bool:
    """Whether the most probable detection has the class of a labeled box that it overlaps by an IoU of at least 0.5.

    >>> box, label = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([1])
    >>> is_detected({"boxes": box, "labels": label, "scores": torch.ones(1)}, {"boxes": box + 1, "labels": label})
    False
    """
    if not len(detected["boxes"]):
        return False
    first = detected["scores"].argmax()
    overlap = box_iou(detected["boxes"][first][None], target["boxes"])[0] >= 0.5
    return bool((overlap & (target["labels"] == detected["labels"][first])).any())
