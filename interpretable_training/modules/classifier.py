"""Training of an image classifier: loss, metrics, and checkpoints from which it can be rebuilt."""

from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from interpretable_training.batches.read import Picked, check_keys, pick
from interpretable_training.metrics import WorstGroupAccuracy
from interpretable_training.models import build_network
from interpretable_training.regularization import GuidanceLoss, SwapBackgrounds

from ._compat import INSTANTIATOR, attached_trainer
from .checks import check_datamodule, check_logits, check_num_classes, check_range, check_target_shape
from .plain_module import PlainModule, SchedulerCallable, refuse_names_of_objects
from .saved_guidance import guidance_of, plain_guidance

PICTURES = "pictures"  # key of a checkpoint: how pictures become images


def build_metrics(num_classes: int, multilabel: bool) -> MetricCollection:
    """Return accuracy, and top-5 accuracy from ten classes on; mean average precision of several labels."""
    if multilabel:
        return MetricCollection({"mAP": MultilabelAveragePrecision(num_classes)})
    # validate_args would read the target's values, which waits for the GPU in every step.
    options: dict[str, Any] = {"average": "micro", "validate_args": False}
    metrics = {"accuracy": MulticlassAccuracy(num_classes, **options)}
    if num_classes >= 10:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, top_k=5, **options)
    return MetricCollection(metrics)  # type: ignore[arg-type]


class Classifier(PlainModule):
    """Train a network to classify images.

    >>> Classifier("tiny_cnn", num_classes=6)(images).shape
    torch.Size([4, 6])

    Batches are pairs (images, target), or dicts, dataclasses and named tuples with entries such as `image` and `target`
    or `pixel_values` and `labels`. Logged as `train/...`, `val/...` and `test/...`: `loss`, `accuracy` and, from ten
    classes on, `accuracy_top5`; `loss` and `mAP` where multilabel. Where batches carry `group`, the group of each image
    such as its class and cue, `val/worst_group` and `test/worst_group` are the accuracy of the worst group.

    `Classifier.load_from_checkpoint(path)` rebuilds a network given by name, with the default optimizer unless one is
    passed. Checkpoints hold only the weights of a network given as an object; pass the object again:
    `Classifier.load_from_checkpoint(path, network=network)`.

    Args:
        network: "tiny_cnn", "tiny_vit", the name of a timm model, or any module that maps images to logits.
        num_classes: Number of classes.
        pretrained: Whether a timm network starts from its downloaded weights.
        network_kwargs: Further arguments for a network given by name.
        multilabel: Whether targets (B, num_classes) hold a 0 or 1 for each class.
        loss: Function of logits and target; by default cross-entropy, binary if multilabel.
        optimizer: Function from parameters to an optimizer.
        scheduler: Function from an optimizer to a scheduler that steps after each epoch. `CosineAnnealingLR` without
            `T_max` ends with the training, at `max_epochs` of the trainer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly to that of the optimizer.
        swap: Swap of backgrounds between training images, as the callback `BackgroundSwap` does it.
        guidance: Loss of explanations outside of annotated regions, which the callback `ExplanationGuidance` adds to
            that of training.
        image_key: Name or index of the images in a batch, "outer.inner" of those in another entry; by default they are
            found.
        label_key: The same of the labels.
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
        scheduler: SchedulerCallable | None = None,
        warmup_steps: int = 0,
        swap: SwapBackgrounds | None = None,
        guidance: GuidanceLoss | None = None,
        image_key: int | str | None = None,
        label_key: int | str | None = None,
    ) -> None:
        super().__init__()
        refuse_names_of_objects(guidance=guidance)
        self.save_arguments(network=network, loss=loss)
        swap = SwapBackgrounds(**swap) if isinstance(swap, dict) else swap  # a dict is from a checkpoint
        if INSTANTIATOR not in self.hparams:  # from the command line all arguments are plain values
            self.save_hyperparameters({"swap": None if swap is None else asdict(swap)})
        self.swap = swap
        self.guidance = guidance_of(guidance)
        if self.guidance is not None and INSTANTIATOR not in self.hparams:
            self.save_hyperparameters({"guidance": plain_guidance(self.guidance)})
        forget_pretrained(self.hparams)
        check_num_classes(num_classes)
        if isinstance(network, str):
            network = build_network(network, num_classes, pretrained, **(network_kwargs or {}))
        elif pretrained or network_kwargs:
            raise ValueError(
                f"expected network as a name beside pretrained or network_kwargs, got {type(network).__name__}; "
                "give these arguments to the network itself."
            )
        check_keys(image_key, label_key)
        self.image_key, self.label_key = image_key, label_key
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
        self.val_worst_group, self.test_worst_group = WorstGroupAccuracy(), WorstGroupAccuracy()

    def setup(self, stage: str) -> None:
        check_datamodule(getattr(self.trainer, "datamodule", None), self.num_classes)

    def configure_callbacks(self) -> list[L.Callback]:
        from interpretable_training.callbacks import BackgroundSwap, ExplanationGuidance  # on request: slow to import

        callbacks: list[L.Callback] = [] if self.swap is None else [BackgroundSwap(self.swap, self.image_key)]
        if self.guidance is not None:
            keys: dict[str, Any] = {"image_key": self.image_key, "label_key": self.label_key}
            callbacks.append(ExplanationGuidance(**vars(self.guidance), network="network", **keys))
        return callbacks

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # `interpretable-training explain` prepares pictures by these facts.
        data = getattr(attached_trainer(self), "datamodule", None)
        known = {name: getattr(data, name, None) for name in ("class_names", "mean", "std")}
        facts = {name: list(values) for name, values in known.items() if values is not None}
        shape = None if self.image_shape is None else list(self.image_shape)
        checkpoint[PICTURES] = {"module": type(self).__name__, "image_shape": shape, **facts}

    def read(self, batch: Any) -> Picked:
        """Return the images and labels of a batch; raise where several tensors could be meant."""
        return pick(batch, self.image_key, self.label_key, strict=True)

    def step(self, batch: Any, batch_idx: int, metrics: MetricCollection) -> Tensor:
        """Return the loss of a batch; log it and the metrics."""
        picked = self.read(batch)
        images, target = picked.pair()
        self.image_shape = tuple(images.shape[1:])
        logits = self(images)
        loss = self.criterion(logits, target, batch_idx)
        self.log_step(metrics, logits, target, loss, picked.rest.get("group"))
        return loss

    def criterion(self, logits: Tensor, target: Tensor, batch_idx: int = 0) -> Tensor:
        """Return the loss; raise where logits and target do not fit together."""
        check_logits(logits, self.num_classes)
        check_target_shape(target, logits, self.multilabel)
        # Reading values waits for the GPU, so on one only the first batch of an epoch is checked.
        if not self.multilabel and (batch_idx == 0 or target.device.type == "cpu"):
            check_range(target, self.num_classes)
        return self.loss(logits, target.to(logits.dtype) if self.multilabel else target)

    def log_step(
        self, metrics: MetricCollection, logits: Tensor, target: Tensor, loss: Tensor, group: Any = None
    ) -> None:
        """Update the metrics, and log them and the loss; in validation and test also the worst group's accuracy."""
        metrics.update(logits, target)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(target)}
        self.log(f"{metrics.prefix}loss", loss, sync_dist=True, **options)
        self.log_dict(metrics, **options)
        worst = {"val/": self.val_worst_group, "test/": self.test_worst_group}.get(str(metrics.prefix))
        grouped = isinstance(group, Tensor) and group.shape == target.shape and not group.is_floating_point()
        if worst is not None and grouped and not self.multilabel:
            worst.update(logits, target, group)
            self.log(f"{metrics.prefix}worst_group", worst, **{**options, "prog_bar": False})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, batch_idx, self.train_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, batch_idx, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, batch_idx, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the probability of each class (B, num_classes); batches may be images alone."""
        logits = self(self.read(batch).images)
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def forget_pretrained(hparams: Any) -> None:
    """Set `pretrained` to false: a checkpoint holds the weights, and loading it downloads nothing."""
    hparams["pretrained"] = False
    network = hparams.get("network")
    if isinstance(network, dict) and "pretrained" in network.get("init_args", {}):
        network["init_args"]["pretrained"] = False
