"""Base of the data modules: loaders with an order that depends on a seed alone."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

SPLITS = ("train", "val", "test")
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


def seed_of(*key: int | str) -> int:
    """Return a different seed for each key, such as `seed_of(0, "train", 3)`."""
    # Hashed, because neighboring integers (seed 0 chunk 1, seed 1 chunk 0) would collide in a sum.
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a different generator for each key, such as `seeded_generator(0, "train", 3)`."""
    return torch.Generator().manual_seed(seed_of(*key))


def at_least(minimum: int, **values: int) -> None:
    """Raise for arguments below a minimum, by name."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"expected {name} >= {minimum}, got {value}; pass {name}={minimum} or more.")


class Shuffle(RandomSampler):
    """Draw a new order in each epoch, the same in a training that was resumed at this epoch.

    Args:
        data: Data set to shuffle.
        key: See `seeded_generator`.
        epoch: First epoch. Later ones are counted, or set by Lightning.
    """

    def __init__(self, data: Any, key: tuple[int | str, ...], epoch: int = 0) -> None:
        super().__init__(data, generator=seeded_generator(*key))
        self.key, self.epoch, self.drawn = key, epoch, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.epoch < self.drawn:
            self.generator, self.drawn = seeded_generator(*self.key), 0
        for _ in range(self.epoch - self.drawn):
            deque(super().__iter__(), maxlen=0)
        self.drawn = self.epoch = self.epoch + 1
        # Drawn at once: an epoch that is cut short would leave the generator elsewhere.
        return iter(list(super().__iter__()))


class EpochLoader(DataLoader):
    """Set the epoch of the data set, also in the workers, so that random changes differ from epoch to epoch."""

    def __iter__(self) -> Any:
        # Our sampler and Lightning's have an epoch; without one the data set repeats epoch 0.
        self.dataset.set_epoch(getattr(self.sampler, "epoch", 0))  # type: ignore[attr-defined]
        return super().__iter__()


def collate(items: list[Any]) -> Any:
    """Return a batch of items; `boxes` and `box_target` are padded to the image with most boxes.

    The padding is NaN for boxes and -1 for `box_target`; every image has at least one row.
    """
    if isinstance(items[0], tuple) and isinstance(
        items[0][1], Mapping
    ):  # of a detector: boxes in a dict for each image
        images, targets = zip(*items)
        return default_collate(list(images)), list(targets)
    if not (isinstance(items[0], Mapping) and "boxes" in items[0]):
        return default_collate(items)
    per_box = {"boxes": torch.nan, "box_target": -1}
    padded = {}
    for name in per_box.keys() & items[0].keys():
        values = [torch.as_tensor(item[name]) for item in items]
        room = values[0].new_zeros((1, *values[0].shape[1:]))
        padded[name] = pad_sequence([*values, room], batch_first=True, padding_value=per_box[name])[:-1]
    rest = default_collate([{name: value for name, value in item.items() if name not in padded} for item in items])
    return {name: padded[name] if name in padded else rest[name] for name in items[0]}


class SeededDataModule(L.LightningDataModule):
    """Load `self.splits`; subclasses implement `setup`, which fills in the splits of its stage.

    `missing(stage)` returns the names of the splits to make. Predicting uses the test split.

    >>> data = SeededDataModule(batch_size=2)
    >>> data.splits["test"] = torch.utils.data.TensorDataset(images, target)
    >>> [len(y) for _, y in data.test_dataloader()]
    [2, 2]

    Attributes:
        num_classes: Number of outputs a classifier needs.
        class_names: Name of each class.
        mean: Mean of each channel, which is subtracted from images in [0, 1].
        std: Standard deviation of each channel, by which the difference is divided.
        multilabel: Whether a target holds one 0 or 1 per class instead of a single class.
        cue_names: Name of each kind of cue, where annotated items hold `cue` and `group`; "none" is the last one where
            an image can be without. Empty in other modules.
        splits: The data sets by name: "train", "val", "test".
    """

    num_classes: int
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multilabel: bool = False
    cue_names: list[str] = []

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(0, num_workers=num_workers, seed=seed)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.splits: dict[str, Dataset] = {}

    @property
    def group_names(self) -> list[str]:
        """Names "class, cue" of the groups; group = target * number of cues + cue."""
        return [f"{name}, {cue}" for name in self.class_names for cue in self.cue_names]

    def setup(self, stage: str | None = None) -> None:
        raise NotImplementedError(f"expected {type(self).__name__} to implement setup(stage); fill self.splits there.")

    def missing(self, stage: str | None) -> list[str]:
        """Return the names of the splits that a stage needs (None: all) and that do not exist yet."""
        names = SPLITS if stage is None else STAGES[stage]
        return [name for name in names if name not in self.splits]

    def loader(self, split: str) -> DataLoader:
        """Return the loader of one split; that of the training split shuffles."""
        if split not in self.splits:
            raise RuntimeError(f"expected the {split} split, got {sorted(self.splits)}; call setup() first.")
        data: Any = self.splits[split]
        # Not 0 where a training is resumed; at this time `current_epoch` may still be that of the checkpoint.
        progress: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer is not None else None
        epoch = progress.processed if progress else 0
        # Sampler and workers draw from different generators: workers draw their seeds once or once per epoch
        # (persistent or not), which would otherwise shift the order from the second epoch on.
        shuffle = Shuffle(data, (self.seed, split, "order"), epoch) if split == "train" else None
        changes = split == "train" and hasattr(data, "set_epoch")
        if changes:
            data.first_epoch = epoch
        return (EpochLoader if changes else DataLoader)(
            data,
            batch_size=self.batch_size,
            sampler=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=seeded_generator(self.seed, split, "workers"),
        )

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.loader("test")
