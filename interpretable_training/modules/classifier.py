"""Training of an image classifier: loss, metrics, optimizer, and checkpoints that rebuild themselves."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from interpretable_training.batches.read import pick
from interpretable_training.models import build_network

from .checks import check_datamodule, check_logits, check_range, check_target
from .class_paths import PlainModule

PICTURES = "pictures"  # under which a checkpoint knows how pictures become images
OBJECT = "object of class "  # how checkpoints name what they cannot rebuild


def build_metrics(num_classes: int, multilabel: bool) -> MetricCollection:
    """Accuracy, top-5 accuracy from ten classes on; mean average precision where there are several labels."""
    if multilabel:
        return MetricCollection({"mAP": MultilabelAveragePrecision(num_classes)})
    # validate_args would look at the target's values, which waits for the GPU in every step.
    options: dict[str, Any] = {"average": "micro", "validate_args": False}
    metrics = {"accuracy": MulticlassAccuracy(num_classes, **options)}
    if num_classes >= 10:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, top_k=5, **options)
    return MetricCollection(metrics)  # type: ignore[arg-type]


class Classifier(PlainModule):
    """Trains a network to classify images.

    Batches are pairs (images, target), or dicts, dataclasses and named tuples with entries such as `image` and `target`
    or `pixel_values` and `labels`. Logged as `train/...`, `val/...` and `test/...`: `loss`, `accuracy` and, from ten
    classes on, `accuracy_top5`; `loss` and `mAP` where multilabel.

    A checkpoint of a network given by name rebuilds it: `Classifier.load_from_checkpoint(path)`, with the default
    optimizer unless one is passed. Of a network given as an object it knows the weights only; pass the object again:
    `Classifier.load_from_checkpoint(path, network=network)`.

    Args:
        network: "tiny_cnn", "tiny_vit", the name of a timm model, or any module that maps images to logits.
        num_classes: Number of classes.
        pretrained: Whether a timm network starts from its downloaded weights.
        network_kwargs: Further arguments for a network given by name.
        multilabel: Whether targets (B, num_classes) hold a 0 or 1 for each class.
        loss: Function of logits and target; by default cross-entropy, binary if multilabel.
        optimizer: Function from parameters to an optimizer.
        scheduler: Function from an optimizer to a scheduler that steps after each epoch.
        warmup_steps: Optimizer steps over which the learning rate rises linearly to that of the optimizer.
    """

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        pretrained: bool = False,
        network_kwargs: dict[str, Any] | None = None,
        multilabel: bool = False,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        objects = {k: v for k, v in {"network": network, "loss": loss}.items() if isinstance(v, nn.Module)}
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *objects])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()  # from the command line all of them are plain values
        else:
            self.save_hyperparameters({k: OBJECT + type(v).__qualname__ for k, v in objects.items()})
        forget_pretrained(self.hparams)
        refuse_names_of_objects(network=network, loss=loss)
        if isinstance(network, str):
            network = build_network(network, num_classes, pretrained, **(network_kwargs or {}))
        elif pretrained or network_kwargs:
            raise ValueError(
                f"expected network as a name beside pretrained or network_kwargs, got {type(network).__name__}; "
                "give these arguments to the network itself."
            )
        self.network, self.num_classes, self.multilabel = network, num_classes, multilabel
        self.loss = loss or (nn.BCEWithLogitsLoss() if multilabel else nn.CrossEntropyLoss())
        if warmup_steps < 0:
            raise ValueError(f"expected warmup_steps >= 0, got {warmup_steps}; pass 0 for no warm-up.")
        self.optimizer, self.scheduler, self.warmup_steps = optimizer, scheduler, warmup_steps
        self.image_shape: tuple[int, ...] | None = None  # of the last batch
        metrics = build_metrics(num_classes, multilabel)
        self.train_metrics, self.val_metrics, self.test_metrics = (
            metrics.clone(prefix=f"{split}/") for split in ("train", "val", "test")
        )

    def setup(self, stage: str) -> None:
        check_datamodule(getattr(self.trainer, "datamodule", None), self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # What it takes to show this network a picture: `interpretable-training explain` reads it.
        data = getattr(self._trainer, "datamodule", None)
        known = {name: getattr(data, name, None) for name in ("class_names", "mean", "std")}
        told = {name: list(values) for name, values in known.items() if values is not None}
        shape = None if self.image_shape is None else list(self.image_shape)
        checkpoint[PICTURES] = {"module": type(self).__name__, "image_shape": shape, **told}

    def step(self, batch: Any, batch_idx: int, metrics: MetricCollection) -> Tensor:
        """Loss of a batch, logged together with the metrics."""
        images, target = pick(batch, strict=True).pair()
        self.image_shape = tuple(images.shape[1:])
        logits = self(images)
        loss = self.criterion(logits, target, batch_idx)
        self.log_step(metrics, logits, target, loss)
        return loss

    def criterion(self, logits: Tensor, target: Tensor, batch_idx: int = 0) -> Tensor:
        """Loss of logits, which are compared with the target first."""
        check_logits(logits, self.num_classes)
        check_target(target, logits, self.multilabel)
        # Reading values waits for the GPU, so there only the first batch of an epoch is looked at.
        if not self.multilabel and (batch_idx == 0 or target.device.type == "cpu"):
            check_range(target, self.num_classes)
        return self.loss(logits, target.to(logits.dtype) if self.multilabel else target)

    def log_step(self, metrics: MetricCollection, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Update the metrics, and log them and the loss."""
        metrics.update(logits, target)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(target)}
        self.log(f"{metrics.prefix}loss", loss, sync_dist=True, **options)
        self.log_dict(metrics, **options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, batch_idx, self.train_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, batch_idx, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, batch_idx, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probability of each class (B, num_classes); batches may be images alone."""
        logits = self(pick(batch, strict=True).images)
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        configs: list[dict[str, Any]] = []
        if self.scheduler is not None:
            scheduler = self.scheduler(optimizer)
            configs.append({"scheduler": scheduler, "interval": "epoch"})
            if isinstance(scheduler, ReduceLROnPlateau):
                configs[0]["monitor"] = scheduler.monitor
        if self.warmup_steps > 1:  # the first step has 1 / warmup_steps of the rate, the last one all of it
            rise = LinearLR(optimizer, 1 / self.warmup_steps, total_iters=self.warmup_steps - 1)
            configs.append({"scheduler": rise, "interval": "step"})
        return [optimizer], configs


def forget_pretrained(hparams: Any) -> None:
    """Say that nothing is to be downloaded when a checkpoint, which has the weights, is loaded."""
    hparams["pretrained"] = False
    network = hparams.get("network")
    if isinstance(network, dict) and "pretrained" in network.get("init_args", {}):
        network["init_args"]["pretrained"] = False


def refuse_names_of_objects(**arguments: Any) -> None:
    """Ask for the objects of which a checkpoint only knows the class."""
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith(OBJECT):
            raise ValueError(
                f"expected {name}=..., because this checkpoint was made with an {value}, got none; "
                f"build it and call load_from_checkpoint(path, {name}={value.removeprefix(OBJECT)}(...))."
            )
