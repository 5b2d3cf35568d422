"""Training that pulls the gradient of the images towards their guided gradient."""

from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from interpretable_training.batches.read import pick
from interpretable_training.regularization import GuidedGradientRegularizer, Parts, both_gradients
from interpretable_training.regularization.errors import cosine
from interpretable_training.regularization.regularizer import mean_norm

from .classifier import Classifier
from .plain_module import name_of_object, refuse_names_of_objects

PINNED = 1 - 1e-4  # mean similarity above which there is nothing left to teach


class GuidedGradientClassifier(Classifier):
    """Train a network to classify images, with a guided-gradient regularizer.

    >>> GuidedGradientClassifier("tiny_cnn", num_classes=6)(images).shape
    torch.Size([4, 6])

    Logs, in addition to `Classifier`, where `loss` is the classification loss: `train/regularization` and
    `train/total_loss`; and on training and validation data `similarity`, the mean cosine of the gradient of the images
    and their guided gradient, and the mean norms of the two, `gradient_norm` and `guided_gradient_norm`. In training
    these three are means over regularized steps. Warns of a similarity that is not finite or stays at 1.

    Args:
        network: See `Classifier`.
        num_classes: Number of classes.
        regularizer: Term that is added to the loss.
        **kwargs: Further arguments of `Classifier`.
    """

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        regularizer: GuidedGradientRegularizer = GuidedGradientRegularizer(),  # noqa: B008  frozen
        **kwargs: Any,
    ) -> None:
        refuse_names_of_objects(regularizer=regularizer)
        super().__init__(network, num_classes, **kwargs)
        if isinstance(regularizer, dict):  # from a checkpoint
            regularizer = GuidedGradientRegularizer(**regularizer)
        self.regularizer = regularizer
        if "_instantiator" not in self.hparams:  # from the command line all arguments are plain values
            plain = isinstance(regularizer.error, str)
            self.save_hyperparameters({"regularizer": asdict(regularizer) if plain else name_of_object(regularizer)})
        self.reported = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, target = pick(batch, strict=True).pair()
        self.image_shape = tuple(images.shape[1:])
        criterion = partial(self.criterion, batch_idx=batch_idx)
        options: dict[str, Any] = {"step": self.global_step, "scale": grad_scale(self._trainer)}
        loss, parts = self.regularizer(self.network, images, target, criterion, **options)
        self.log_step(self.train_metrics, parts.output, target, parts.classification)
        log_parts(self, parts, len(images))
        if parts.gated and not self.reported:
            report(self.network, parts)
            self.reported = True
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        images, target = pick(batch, strict=True).pair()
        self.image_shape = tuple(images.shape[1:])
        options: dict[str, Any] = {"at": self.regularizer.at, "scope": self.regularizer.scope}
        d, d2 = both_gradients(self.network, images, target, partial(self.criterion, batch_idx=batch_idx), **options)
        log_similarity(self, "val", -cosine(d, d2).mean(), mean_norm(d), mean_norm(d2), len(images))

    def on_fit_start(self) -> None:
        say_compiled(self)

    def on_train_epoch_end(self) -> None:
        warn_of_collapse(self.trainer)


def say_compiled(module: L.LightningModule) -> None:
    """Warn where the whole module was compiled; compiled parts are seen when they run."""
    if module._compiler_ctx is not None:
        rank_zero_warn(
            f"{type(module).__name__} is compiled, and compiled modules cannot be differentiated twice: steps with "
            "guided gradients run eagerly"
        )


def grad_scale(trainer: L.Trainer | None) -> float:
    """Factor by which the trainer multiplies losses before it differentiates them, in float16."""
    scaler = None if trainer is None else getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def log_parts(module: L.LightningModule, parts: Parts, batch_size: int) -> None:
    """Log the parts of a training loss, if it was regularized."""
    if parts.regularization is None:
        return
    options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": batch_size, "sync_dist": True}
    module.log("train/regularization", parts.regularization, **options)
    module.log("train/total_loss", parts.total, **options)
    log_similarity(module, "train", parts.similarity, parts.norm, parts.guided_norm, batch_size)


def log_similarity(
    module: L.LightningModule, split: str, similarity: Any, norm: Any, guided_norm: Any, batch_size: int
) -> None:
    """Log how alike the two gradients are, and how long."""
    options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": batch_size, "sync_dist": True}
    module.log(f"{split}/similarity", similarity, prog_bar=True, **options)
    module.log_dict({f"{split}/gradient_norm": norm, f"{split}/guided_gradient_norm": guided_norm}, **options)


def report(network: nn.Module, parts: Parts) -> None:
    """Say how many activations the regularizer found."""
    rank_zero_info(f"{parts.gated} activations of {type(network).__name__} are guided")


def warn_of_collapse(trainer: L.Trainer) -> None:
    """Look at the similarity of the training epoch, and warn where the regularizer has stopped to teach."""
    similarity = trainer.callback_metrics.get("train/similarity")
    if similarity is None:
        return
    if not similarity.isfinite():
        rank_zero_warn(
            "expected a finite train/similarity, got nan: the gradients overflow or the training diverged. Train in "
            "bf16-mixed or 32-true, lower the learning rate or the weight, or clip gradients."
        )
    elif similarity > PINNED:
        rank_zero_warn(
            f"expected train/similarity below 1, got {float(similarity):.6f}: the gradient equals the guided one, so "
            "that there is nothing left to teach. Lower the weight, or pass an earlier layer as `at` if few of the "
            "activations lie behind this one."
        )
