"""CIFAR-100: 60 000 color photographs of 32 x 32 pixels in 100 classes (Krizhevsky, 2009)."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR100
from torchvision.transforms import v2

from .base import at_least
from .image_files import absent
from .picture_module import PicturesDataModule, Transform, set_apart
from .pictures import Pictures

URL = CIFAR100.url


class CIFAR100Pictures(Pictures):
    """Photographs of CIFAR-100, held in memory."""

    def __init__(self, data: np.ndarray, target: list[int], **options: Any) -> None:
        super().__init__(Path(), [str(i) for i in range(len(data))], target, **options)
        self.data = data

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.data[index])


class CIFAR100DataModule(PicturesDataModule):
    """Prepare CIFAR-100 as https://github.com/weiaicunzai/pytorch-cifar100 does.

    ```python
    data = CIFAR100DataModule("data", download=True)  # 160 MB, once
    Trainer(max_epochs=200).fit(Classifier("cifar_resnet18", data.num_classes), data)
    ```

    Training images are padded by 4 pixels, cropped, flipped and rotated by up to 15 degrees at random. The test split
    is the 10 000 images of the original one; there is no validation split in the original.

    Args:
        root: Folder that holds, or will hold, `cifar-100-python`.
        n_val: Training images set apart for validation; with 0, validation uses the test split, as the thesis does.
        download: Whether to download the 160 MB archive if it is not there.
        augment: Whether training images are changed at random.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the validation split, of random changes and of the order of training.
        image_size: Side of the images, or height and width, to which they are enlarged.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
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
        image_size: int | tuple[int, int] = 32,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
    ) -> None:
        super().__init__(
            image_size,
            augment=augment,
            train_transform=train_transform,
            eval_transform=eval_transform,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        at_least(0, n_val=n_val)
        self.root, self.n_val, self.download = root, n_val, download
        self.class_names = [f"class {i}" for i in range(self.num_classes)]  # until `setup` reads them

    def prepare_data(self) -> None:
        if self.download:
            CIFAR100(self.root, download=True)

    def read(self, split: str) -> Pictures:
        from_train = split == "train" or (split == "val" and self.n_val > 0)
        data = self.open(from_train)
        self.class_names = list(data.classes)
        rows = list(range(len(data)))
        if from_train and self.n_val:
            rows = set_apart(len(data), self.n_val, split, self.seed)
        return CIFAR100Pictures(data.data[rows], [data.targets[i] for i in rows], **self.options(split))

    def open(self, train: bool) -> Any:
        """Return one of the two original splits."""
        # torchvision compares every file with its published MD5 before it unpickles it: other files execute nothing.
        try:
            return CIFAR100(self.root, train)
        except RuntimeError as error:
            raise absent(
                "the files of CIFAR-100",
                Path(self.root) / CIFAR100.base_folder,
                f"or other ones; unpack {URL} in {self.root}, or pass download=True.",
            ) from error

    def random_changes(self) -> Transform:
        changes = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15)]
        return v2.Compose([*changes, self.fixed_changes()])

    def fixed_changes(self) -> Transform:
        return v2.Resize(self.size)  # which leaves 32 x 32 as it is
