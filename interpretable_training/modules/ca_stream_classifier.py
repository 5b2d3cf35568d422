"""Training of a CA-Stream next to a frozen backbone."""

import math
import os
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torchmetrics import MetricCollection

from interpretable_training.models import CAStream, build_network
from interpretable_training.models.ca_stream import StreamOutput

from ._compat import INSTANTIATOR, attached_trainer
from .checks import check_num_classes, check_range
from .classifier import Classifier, build_metrics
from .feature_cache import WORDS, FeatureCache, refuse_random_views
from .plain_module import SchedulerCallable, name_of_object, refuse_names_of_objects


def thesis_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD as in the paper, for 256 images per step."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def thesis_scheduler(optimizer: torch.optim.Optimizer) -> StepLR:
    """Return a schedule that divides the learning rate by ten after every 30 of 90 epochs."""
    return StepLR(optimizer, step_size=30, gamma=0.1)


class CAStreamClassifier(Classifier):
    """Train a CA-Stream next to a frozen backbone.

    >>> CAStreamClassifier("tiny_cnn", num_classes=6)(images).shape
    torch.Size([4, 6])

    In validation and test this logs, in addition to `Classifier`: the same metrics of the plain network on the same
    features as `gap_...`, or `own_...` where it does not average, and for each stage S0, S1, ... of the stream
    `entropy_S...`, the entropy of the attention as a share of that of uniform attention, and `coverage_S...`, the share
    of the cells that hold 90 % of the attention.

    The end of a fit checks that nothing frozen changed. A checkpoint holds the stream alone.
    `CAStreamClassifier.load_from_checkpoint(path)` rebuilds a backbone given by name, and refuses it where the name and
    `pretrained` or `weights` lead to other weights.

    Args:
        network: Backbone, as an object or by name as in `Classifier`; or a `CAStream`.
        num_classes: Number of classes.
        pretrained: Whether a backbone given by name starts from the downloaded weights of timm.
        network_kwargs: Further arguments for a backbone given by name.
        weights: File with the backbone's weights: a checkpoint of `Classifier`, or a state dict.
        stream: Arguments of `CAStream`, such as `{"start": 4}`. A backbone of timm without classifier gets a new one.
        cache_features: Whether to keep the features of the backbone in files, in "float16" (True) or "bfloat16", so
            that each image passes through it once. Needs the same images in every epoch: no random augmentation.
        cache_folder: Folder of these files; by default `features` in the Trainer's `default_root_dir`.
        reference_batch: Images per step for which the optimizer's learning rate is meant; it is scaled in proportion
            to the batch. None does not scale it.
        multilabel: See `Classifier`.
        loss: See `Classifier`.
        optimizer: Function from parameters to an optimizer.
        scheduler: See `Classifier`.
        image_key: See `Classifier`.
        label_key: See `Classifier`.
    """

    network: CAStream
    cache: FeatureCache | None

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        pretrained: bool = False,
        network_kwargs: dict[str, Any] | None = None,
        weights: str | None = None,
        stream: dict[str, Any] | None = None,
        cache_features: bool | str = False,
        cache_folder: str | None = None,
        reference_batch: int | None = 256,
        multilabel: bool = False,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = thesis_optimizer,
        scheduler: SchedulerCallable | None = thesis_scheduler,
        image_key: int | str | None = None,
        label_key: int | str | None = None,
    ) -> None:
        refuse_names_of_objects(network=network, loss=loss)
        check_num_classes(num_classes)
        built = build_stream(network, num_classes, pretrained, network_kwargs, weights, stream)
        options: dict[str, Any] = {"multilabel": multilabel, "image_key": image_key, "label_key": label_key}
        super().__init__(built, num_classes, loss=loss, optimizer=optimizer, scheduler=scheduler, **options)
        if built.class_specific and multilabel:
            raise ValueError(
                "expected class_specific=False with multilabel=True, got both: one image has one first query, that of "
                "its class; pass class_specific=False."
            )
        if INSTANTIATOR not in self.hparams:  # from the command line all arguments are plain values
            named = network if isinstance(network, str) else name_of_object(network)
            self.save_hyperparameters({"network": named})
        self.hparams["pretrained"] = pretrained  # unlike other checkpoints, ours does not hold the backbone's weights
        self.reference_batch = reference_batch
        self.unscaled, self.optimizer = self.optimizer, self.scaled_optimizer
        self.cache_features = "float16" if cache_features is True else cache_features
        self.cache_folder, self.cache = cache_folder, None
        if self.cache_features and (built.train_backbone or self.cache_features not in WORDS):
            raise ValueError(
                "expected cache_features as True, False, 'float16' or 'bfloat16', with train_backbone=False, got "
                f"{cache_features!r} and train_backbone={built.train_backbone}."
            )
        metrics = build_metrics(num_classes, multilabel)
        own = built.pooling
        self.val_gap_metrics, self.test_gap_metrics = (metrics.clone(prefix=f"{s}/{own}_") for s in ("val", "test"))

    def forward(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        return self.network(images, target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, target = self.read(batch).pair()
        self.image_shape = tuple(images.shape[1:])
        if self.network.class_specific:
            check_range(target, self.num_classes)
        which = target if self.network.class_specific else None
        logits = self(images, which) if self.cache is None else self.network.pool(self.cache(images)[1], which)[0]
        loss = self.criterion(logits, target, batch_idx)
        self.log_step(self.train_metrics, logits, target, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.compare(batch, batch_idx, self.val_metrics, self.val_gap_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.compare(batch, batch_idx, self.test_metrics, self.test_gap_metrics)

    def compare(self, batch: Any, batch_idx: int, metrics: MetricCollection, gap_metrics: MetricCollection) -> None:
        """Log the metrics of the stream and of average pooling, and entropy and coverage of the attention."""
        picked = self.read(batch)
        images, target = picked.pair()
        self.image_shape = tuple(images.shape[1:])
        seen = self.network.forward_with_gap(images) if self.cache is None else self.pool_cached(images)
        loss = self.criterion(seen.logits, target, batch_idx)
        self.log_step(metrics, seen.logits, target, loss, picked.rest.get("group"))
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(images)}
        if seen.gap is not None:
            gap_metrics.update(seen.gap, target)
            self.log_dict(gap_metrics, prog_bar=True, **options)
        split = str(metrics.prefix).rstrip("/")
        for stage, a in enumerate(seen.attention.maps, self.network.start):
            self.log(f"{split}/entropy_S{stage}", entropy(a).mean(), sync_dist=True, **options)
            self.log(f"{split}/coverage_S{stage}", coverage(a).mean(), sync_dist=True, **options)

    def pool_cached(self, images: Tensor) -> StreamOutput:
        """Return what `forward_with_gap` returns, from features in the cache."""
        assert self.cache is not None
        misses = self.cache.misses
        gap, maps = self.cache(images)
        self.cache.misses = misses  # of training alone
        which = gap.argmax(1) if gap is not None and self.network.class_specific else None
        logits, attention = self.network.pool(maps, which)
        return StreamOutput(logits, gap, attention)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.cache_features:
            folder = self.cache_folder or os.path.join(self.trainer.default_root_dir, "features")
            self.cache = FeatureCache(self.network, folder, str(self.cache_features), self.trainer.global_rank)

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self.cache = None

    def on_train_epoch_start(self) -> None:
        if self.cache is not None:
            self.cache.reset()

    def on_train_epoch_end(self) -> None:
        epoch = self.trainer.current_epoch
        if self.cache is not None and self.cache.misses and epoch > self.first_epoch:
            raise RuntimeError(
                f"expected the same images in every epoch, got {self.cache.misses} new ones in epoch {epoch}; remove "
                "random augmentation and random subsets, or pass cache_features=False."
            )

    def on_train_start(self) -> None:
        self.first_epoch = self.trainer.current_epoch
        if self.cache is not None:
            refuse_random_views(self.trainer.train_dataloader, self.read)

    def on_fit_start(self) -> None:
        self.checksums = self.network.checksums()

    def on_fit_end(self) -> None:
        now = self.network.checksums()
        changed = [name for name, checksum in self.checksums.items() if now.get(name) != checksum]
        if changed:
            raise RuntimeError(
                f"expected the frozen backbone as it was when the training started, but {len(changed)} of its "
                f"{len(self.checksums)} tensors changed, the first is {changed[0]!r}; remove the callback or hook that "
                "writes to them (averaging of weights and statistics of batch norm are candidates) and train again."
            )

    def scaled_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters, its learning rate scaled to the global batch."""
        self.network.seal()
        optimizer = self.unscaled([parameter for parameter in parameters if parameter.requires_grad])
        trainer = attached_trainer(self)
        if self.reference_batch is None or trainer is None:
            return optimizer
        size = batch_size(trainer)
        if size is None:
            rank_zero_warn(
                "expected a training loader with a batch_size to scale the learning rate by, got none; it is not "
                "scaled. Pass reference_batch=None and the rate that suits your batch."
            )
            return optimizer
        batch = size * trainer.world_size * trainer.accumulate_grad_batches
        for group in optimizer.param_groups:
            before, group["lr"] = group["lr"], group["lr"] * batch / self.reference_batch
            if batch != self.reference_batch:
                rank_zero_info(
                    f"Learning rate {before:g}, meant for {self.reference_batch} images per step, scaled to "
                    f"{group['lr']:g} for {batch}: {size} in a batch, {trainer.world_size} processes, "
                    f"{trainer.accumulate_grad_batches} batches accumulated."
                )
        return optimizer


def build_stream(
    network: str | nn.Module,
    num_classes: int,
    pretrained: bool,
    network_kwargs: dict[str, Any] | None,
    weights: str | None,
    stream: dict[str, Any] | None,
) -> CAStream:
    """Return the CA-Stream that the arguments of the classifier describe."""
    stream = dict(stream or {})
    if isinstance(network, str):
        if not pretrained and weights is None and not stream.get("train_backbone"):
            rank_zero_warn(
                f"expected pretrained=True or weights=... for the frozen backbone {network!r}, got neither: its "
                "weights are random and stay so."
            )
        network = build_network(network, num_classes, pretrained, **(network_kwargs or {}))
    elif pretrained or network_kwargs or (stream and isinstance(network, CAStream)):
        raise ValueError(
            f"expected network as a name beside pretrained or network_kwargs, and no CAStream beside stream, got "
            f"{type(network).__name__}; give these arguments to the network itself."
        )
    if weights is not None:
        load_weights(network.backbone if isinstance(network, CAStream) else network, weights)
    if getattr(network, "num_classes", None) == 0:  # timm without classifier
        stream.setdefault("num_classes", num_classes)
    built = network if isinstance(network, CAStream) else CAStream(network, **stream)
    if built.num_classes != num_classes:
        raise ValueError(
            f"expected num_classes={built.num_classes}, for which the head of {type(built.backbone).__name__} is made, "
            f"got {num_classes}; pass a backbone that was trained for these classes."
        )
    return built


def load_weights(backbone: nn.Module, path: str) -> None:
    """Load the backbone's weights from a checkpoint of `Classifier` or a state dict."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    inner = {name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")}
    backbone.load_state_dict(inner or state)


def batch_size(trainer: L.Trainer) -> int | None:
    """Return the number of images in a batch of the training loader; None where the loader has no batch size."""
    trainer.fit_loop.setup_data()  # as `Trainer.estimated_stepping_batches` does
    loader = trainer.train_dataloader
    return getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def entropy(a: Tensor) -> Tensor:
    """Return -sum a log a / log p of attention (..., h, w) over p cells: 1 for uniform attention."""
    return torch.special.entr(a).sum((-2, -1)) / math.log(a.shape[-2] * a.shape[-1])


def coverage(a: Tensor, share: float = 0.9) -> Tensor:
    """Return the smallest share of the cells that together hold 90 % of the attention (..., h, w)."""
    held = a.flatten(-2).sort(-1, descending=True).values.cumsum(-1)
    return ((held < share).sum(-1) + 1) / held.shape[-1]
