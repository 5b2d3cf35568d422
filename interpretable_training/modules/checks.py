"""Checks of what a classifier receives: errors name the mistake before CUDA or the loss fails."""

import lightning as L
from torch import Tensor

MOST_CLASSES = 1_000_000


def check_datamodule(datamodule: L.LightningDataModule | None, num_classes: int) -> None:
    """Raise where the data module has another number of classes."""
    classes = getattr(datamodule, "num_classes", None)
    if classes is not None and classes != num_classes:
        raise ValueError(
            f"expected num_classes={classes}, which is what {type(datamodule).__name__} holds, got {num_classes} "
            f"in the classifier; pass num_classes={classes}."
        )


def check_num_classes(num_classes: int) -> None:
    """Raise for a number of classes that no classifier has."""
    if not isinstance(num_classes, int) or not 1 <= num_classes <= MOST_CLASSES:
        raise ValueError(
            f"expected num_classes from 1 to {MOST_CLASSES}, got {num_classes!r}; pass how many classes the data have."
        )


def check_logits(logits: Tensor, num_classes: int) -> None:
    """Raise where the network's output has another number of classes."""
    if logits.shape[1:] != (num_classes,):
        raise ValueError(
            f"expected logits (B, {num_classes}) from the network, got {tuple(logits.shape)}; "
            "give network and classifier the same num_classes."
        )


def check_target_shape(target: Tensor, logits: Tensor, multilabel: bool) -> None:
    """Raise where the target's shape or type belongs to another kind of classification."""
    if multilabel and target.shape != logits.shape:
        raise ValueError(
            f"expected a multilabel target {tuple(logits.shape)} of zeros and ones, got {tuple(target.shape)}; "
            "encode the classes of each image so, or pass multilabel=False."
        )
    if not multilabel and (target.ndim != 1 or target.is_floating_point()):
        raise ValueError(
            f"expected a target ({len(logits)},) of class numbers, got {tuple(target.shape)} of {target.dtype}; "
            "return one integer per image, or pass multilabel=True for several classes per image."
        )


def check_range(target: Tensor, num_classes: int) -> None:
    """Raise for class numbers outside [0, num_classes)."""
    wrong = target[(target < 0) | (target >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"expected targets from 0 to {num_classes - 1} (num_classes={num_classes}), got {int(wrong[0])}; "
            "number the classes from 0 and pass how many there are."
        )
