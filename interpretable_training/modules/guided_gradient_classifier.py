"""Training that pulls the gradient of the images towards their guided gradient."""

from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor, nn

from interpretable_training.regularization import GuidedGradientRegularizer, both_gradients
from interpretable_training.regularization.errors import cosine
from interpretable_training.regularization.monitoring import (
    grad_scale,
    log_parts,
    log_similarity,
    report_gated,
    warn_if_compiled,
    warn_of_collapse,
)
from interpretable_training.regularization.regularizer import mean_norm

from ._compat import INSTANTIATOR, attached_trainer
from .classifier import Classifier
from .plain_module import name_of_object, refuse_names_of_objects


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
        if kwargs.get("guidance") is not None:
            raise ValueError(
                "expected no guidance with a guided-gradient regularizer, got both: each records the forward pass of "
                "the step; use Classifier(..., guidance=...) or leave out guidance."
            )
        super().__init__(network, num_classes, **kwargs)
        if isinstance(regularizer, dict):  # from a checkpoint
            regularizer = GuidedGradientRegularizer(**regularizer)
        self.regularizer = regularizer
        if INSTANTIATOR not in self.hparams:  # from the command line all arguments are plain values
            plain = isinstance(regularizer.error, str)
            self.save_hyperparameters({"regularizer": asdict(regularizer) if plain else name_of_object(regularizer)})
        self.reported = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, target = self.read(batch).pair()
        self.image_shape = tuple(images.shape[1:])
        criterion = partial(self.criterion, batch_idx=batch_idx)
        options: dict[str, Any] = {"step": self.global_step, "scale": grad_scale(attached_trainer(self))}
        loss, parts = self.regularizer(self.network, images, target, criterion, **options)
        self.log_step(self.train_metrics, parts.output, target, parts.classification)
        log_parts(self, parts, len(images))
        if parts.gated and not self.reported:
            report_gated(self.network, parts)
            self.reported = True
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        images, target = self.read(batch).pair()
        self.image_shape = tuple(images.shape[1:])
        options: dict[str, Any] = {"at": self.regularizer.at, "scope": self.regularizer.scope}
        d, d2 = both_gradients(self.network, images, target, partial(self.criterion, batch_idx=batch_idx), **options)
        log_similarity(self, "val", -cosine(d, d2).mean(), mean_norm(d), mean_norm(d2), len(images))

    def on_fit_start(self) -> None:
        warn_if_compiled(self)

    def on_train_epoch_end(self) -> None:
        warn_of_collapse(self.trainer)
