"""Handwritten digits: the 1797 real images of 8 x 8 pixels that come with scikit-learn."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from .base import SPLITS, SeededDataModule, at_least


class DigitsDataModule(SeededDataModule):
    """Load ten digits in gray, of every class 70 % for training, 15 % for validation and 15 % for testing.

    >>> data = DigitsDataModule(image_size=16)
    >>> data.setup("validate")
    >>> next(iter(data.val_dataloader()))[0].shape
    torch.Size([64, 1, 16, 16])

    Args:
        image_size: Side of the images, which are enlarged bilinearly.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the splits and of the order of training.
    """

    num_classes = 10
    mean = (0.305,)
    std = (0.324,)

    def __init__(self, image_size: int = 32, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, seed)
        at_least(8, image_size=image_size)
        self.image_size = image_size
        self.class_names = [str(digit) for digit in range(10)]

    def setup(self, stage: str | None = None) -> None:
        missing = self.missing(stage)
        if not missing:
            return
        images, target = read_digits(self.image_size)
        images = (images - self.mean[0]) / self.std[0]
        for split, rows in zip(SPLITS, split_rows(target, self.seed)):
            if split in missing:
                self.splits[split] = TensorDataset(images[rows], target[rows])


def read_digits(size: int) -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, size, size) in [0, 1] and their digits (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which holds the digits, got no such package; "
            'run pip install "interpretable-training[data]".'
        ) from error
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    return images, torch.tensor(digits.target, dtype=torch.int64)


def split_rows(target: Tensor, seed: int) -> list[list[int]]:
    """Return the rows of training, validation and test images; each class is divided in the same proportions."""
    from sklearn.model_selection import train_test_split

    rows, classes = range(len(target)), target.tolist()
    train, rest = train_test_split(rows, train_size=0.7, stratify=classes, random_state=seed)
    val, test = train_test_split(rest, train_size=0.5, stratify=[classes[i] for i in rest], random_state=seed)
    return [train, val, test]
