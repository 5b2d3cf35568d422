"""CIFAR-100: 60 000 color photographs of 32 x 32 pixels in 100 classes (Krizhevsky, 2009)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import CIFAR100

from .base import SeededDataModule, at_least, seeded

URL = CIFAR100.url


class CIFAR100DataModule(SeededDataModule):
    """The photographs as https://github.com/weiaicunzai/pytorch-cifar100 prepares them.

    Training images are padded by 4 pixels, cropped, flipped and rotated by up to 15 degrees at random. The test split
    is the 10 000 images of the original one; there is no validation split in the original.

    Args:
        root: Folder that holds, or will hold, `cifar-100-python`.
        n_val: Training images set apart for validation; with 0, validation uses the test split, as the thesis does.
        download: Whether to download the 160 MB archive if it is not there.
        augment: Whether training images are changed at random.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the validation split and of the order of training.
    """

    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def __init__(
        self,
        root: str = "data",
        n_val: int = 0,
        download: bool = False,
        augment: bool = True,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        at_least(0, n_val=n_val)
        self.root, self.n_val, self.download, self.augment = root, n_val, download, augment
        self.class_names = [f"class {i}" for i in range(self.num_classes)]  # until `setup` reads them

    def prepare_data(self) -> None:
        if self.download:
            CIFAR100(self.root, download=True)

    def setup(self, stage: str | None = None) -> None:
        for split in self.missing(stage):
            self.splits[split] = self.read(split)

    def read(self, split: str) -> Any:
        """The images of one split."""
        from_train = split == "train" or (split == "val" and self.n_val > 0)
        data = self.open(from_train, self.transform(split))
        self.class_names = list(data.classes)
        if not from_train or not self.n_val:
            return data
        if self.n_val >= len(data):
            raise ValueError(f"expected n_val below {len(data)}, the number of training images, got {self.n_val}.")
        rows = torch.randperm(len(data), generator=seeded(self.seed, "val")).tolist()
        return Subset(data, rows[: self.n_val] if split == "val" else rows[self.n_val :])

    def open(self, train: bool, transform: Callable[..., Any]) -> Any:
        """One of the two original splits."""
        try:
            return CIFAR100(self.root, train, transform)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"expected the files of CIFAR-100 in {Path(self.root).resolve() / CIFAR100.base_folder}, got none or "
                f"other ones; unpack {URL} in {self.root}, or pass download=True."
            ) from error

    def transform(self, split: str) -> Callable[..., Any]:
        """From a picture to a normalized tensor."""
        random = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
        ]
        fixed = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        return transforms.Compose([*random, *fixed] if split == "train" and self.augment else fixed)
