"""What a classifier receives, taken apart and checked, so that a mistake ends in a sentence and not in CUDA."""

import lightning as L
from torch import Tensor


def check_datamodule(datamodule: L.LightningDataModule | None, num_classes: int) -> None:
    """Compare the number of classes, where the data module tells it."""
    found = getattr(datamodule, "num_classes", None)
    if found is not None and found != num_classes:
        raise ValueError(
            f"expected num_classes={found}, which is what {type(datamodule).__name__} holds, got {num_classes} "
            f"in the classifier; pass num_classes={found}."
        )


def check_logits(logits: Tensor, num_classes: int) -> None:
    """Compare the network's output with the number of classes."""
    if logits.shape[1:] != (num_classes,):
        raise ValueError(
            f"expected logits (B, {num_classes}) from the network, got {tuple(logits.shape)}; "
            "give network and classifier the same num_classes."
        )


def check_target(target: Tensor, logits: Tensor, multilabel: bool) -> None:
    """Compare the target's shape with the kind of classification."""
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
    """Refuse class numbers outside [0, num_classes)."""
    wrong = target[(target < 0) | (target >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"expected targets from 0 to {num_classes - 1} (num_classes={num_classes}), got {int(wrong[0])}; "
            "number the classes from 0 and pass how many there are."
        )
