"""Base of the data modules of pictures."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from .base import SeededDataModule, at_least, seed_of, seeded_generator
from .pictures import Pictures

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Transform = Callable[..., Any]


class PicturesDataModule(SeededDataModule):
    """Read pictures, cropped as for torchvision's networks.

    Subclasses implement `read(split)`, which returns `Pictures` made with `options(split)`. Training images are random
    crops, flipped at random; the others are the middle seven eighths of the shorter side.

    ```python
    class Birds(PicturesDataModule):
        num_classes, class_names = 2, ["crow", "gull"]

        def read(self, split):
            files, target = ["a.jpg", "b.jpg"], [0, 1]
            return Pictures(Path("birds", split), files, target, **self.options(split))
    ```

    Args:
        image_size: Side of the images, or height and width.
        annotations: Whether items are dicts instead of pairs; see `Pictures`.
        augment: Whether training images are changed at random.
        train_transform: Function in place of the cropping and flipping of training images, such as a transform of
            torchvision.transforms.v2. Its arguments are a PIL picture and, with `annotations`, a dict of `boxes` and
            maybe `mask` to transform in the same way. Its result is normalized, unless it is floating already.
        eval_transform: Function in place of the cropping of the other images.
        strict: Whether a file that cannot be read is an error; otherwise the next one replaces it.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of random changes, of splits where the data have none, and of the order of training.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        annotations: bool = False,
        augment: bool = True,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        strict: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        at_least(1, image_size=min(height, width))
        self.size, self.annotations, self.augment, self.strict = (height, width), annotations, augment, strict
        self.train_transform, self.eval_transform = train_transform, eval_transform

    def setup(self, stage: str | None = None) -> None:
        for split in self.missing(stage):
            self.splits[split] = self.read(split)

    def read(self, split: str) -> Pictures:
        """Return the pictures of one split."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement read(split); return Pictures.")

    def options(self, split: str) -> dict[str, Any]:
        """Return the arguments of `Pictures` that all data sets share."""
        transform = self.transform(split)
        return {
            "transform": transform,
            "mean": self.mean,
            "std": self.std,
            "seed": seed_of(self.seed, split, "changes"),
            "strict": self.strict,
            "foreign": transform is self.train_transform or transform is self.eval_transform,
        }

    def transform(self, split: str) -> Transform:
        """Return the function from a picture to a picture of the network's size."""
        if split == "train" and self.train_transform is not None:
            return self.train_transform
        if split == "train" and self.augment:
            return self.random_changes()
        if self.eval_transform is not None:
            return self.eval_transform
        return self.fixed_changes()

    def random_changes(self) -> Transform:
        """Return the default transform of training images; random numbers come from torch's generator."""
        return v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()])

    def fixed_changes(self) -> Transform:
        """Return the default transform of the other images."""
        return v2.Compose([Cover(tuple(side * 8 // 7 for side in self.size)), v2.CenterCrop(self.size)])

    @property
    def unreadable(self) -> dict[str, list[str]]:
        """Names of the files of each split that this process, or a worker of it, could not read so far."""
        pictures = {name: data for name, data in self.splits.items() if isinstance(data, Pictures)}
        return {name: [data.file(i) for i in data.unreadable.nonzero()[:, 0]] for name, data in pictures.items()}

    def teardown(self, stage: str) -> None:
        for split, files in self.unreadable.items():
            if files:
                names = f"{files[:10]}{' and more' if len(files) > 10 else ''}"
                warnings.warn(
                    f"expected pictures that can be read, got {len(files)} in the {split} split that cannot: {names}; "
                    "each was replaced by the next one.",
                    stacklevel=2,
                )


@dataclass(frozen=True)
class Cover:
    """Resize a picture and its annotations to the smallest size that covers another one."""

    size: tuple[int, ...]

    def __call__(self, picture: Image.Image, *annotations: Any) -> Any:
        (height, width), (h, w) = self.size, (picture.height, picture.width)
        new = (height, int(height * w / h)) if height * w >= width * h else (int(width * h / w), width)
        return v2.Resize(new)(picture, *annotations)


def set_apart(n: int, n_val: int, split: str, seed: int) -> list[int]:
    """Return the rows of the n training images for validation, or for training."""
    if n_val >= n:
        raise ValueError(f"expected n_val below {n}, the number of training images, got {n_val}; pass less.")
    rows = torch.randperm(n, generator=seeded_generator(seed, "val")).tolist()
    return rows[:n_val] if split == "val" else rows[n_val:]
