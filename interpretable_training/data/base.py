"""The base of the data modules: loaders whose order a seed decides, and nothing else does."""

import hashlib
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

SPLITS = ("train", "val", "test")
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


def seeded(*key: int | str) -> torch.Generator:
    """A generator of its own for each key, such as `seeded(0, "train", 3)`."""
    # Hashed, because neighboring integers (seed 0 chunk 1, seed 1 chunk 0) would meet in any simple sum.
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def at_least(minimum: int, **values: int) -> None:
    """Refuse arguments below a minimum, by name."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"expected {name} >= {minimum}, got {value}; pass {name}={minimum} or more.")


class SeededDataModule(L.LightningDataModule):
    """Loaders for `self.splits`; subclasses implement `setup`, which fills in the splits of its stage.

    Call `missing(stage)` there for the names of the splits to make. Predicting uses the test split.

    Attributes:
        num_classes: Number of outputs a classifier needs.
        class_names: Name of each class.
        mean: Mean of each channel that was subtracted from images in [0, 1].
        std: Standard deviation of each channel that the difference was divided by.
        multilabel: Whether a target holds one 0 or 1 per class instead of a single class.
        splits: The data sets by name: "train", "val", "test".
    """

    num_classes: int
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multilabel: bool = False

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(0, num_workers=num_workers, seed=seed)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.splits: dict[str, Dataset] = {}

    def setup(self, stage: str | None = None) -> None:
        raise NotImplementedError(f"expected {type(self).__name__} to implement setup(stage); fill self.splits there.")

    def missing(self, stage: str | None) -> list[str]:
        """Names of the splits that a stage needs (None: all) and that are not there yet."""
        names = SPLITS if stage is None else STAGES[stage]
        return [name for name in names if name not in self.splits]

    def loader(self, split: str) -> DataLoader:
        """Loader of one split; that of the training split is shuffled."""
        if split not in self.splits:
            raise RuntimeError(f"expected the {split} split, got {sorted(self.splits)}; call setup() first.")
        data: Any = self.splits[split]
        # Sampler and workers draw from different generators: workers draw their seeds once or once per epoch
        # (persistent or not), which would otherwise shift the order from the second epoch on.
        shuffle = RandomSampler(data, generator=seeded(self.seed, split, "order")) if split == "train" else None
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=seeded(self.seed, split, "workers"),
        )

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.loader("test")
