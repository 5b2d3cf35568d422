"""CUB-200-2011: 11 788 photographs of birds of 200 kinds (Wah et al., 2011)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import at_least
from .image_files import absent
from .picture_module import PicturesDataModule, Transform, set_apart
from .pictures import Pictures

URL = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


class CUBPictures(Pictures):
    """Photographs with the box of the bird."""

    def __init__(self, boxes: Tensor, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.boxes = boxes

    def facts(self, index: int) -> dict[str, Any]:
        return {**super().facts(index), "boxes": self.boxes[index, None]}


class CUBDataModule(PicturesDataModule):
    """Read photographs of birds, cropped as for torchvision's networks.

    ```python
    data = CUBDataModule("data", annotations=True)  # data/CUB_200_2011 with images.txt, images, ...
    ```

    The root holds `CUB_200_2011`, or is it. The split is that of `train_test_split.txt`: 5994 photographs for training
    and 5794 for testing; there is no validation split in the original.

    Args:
        root: Folder that holds the data.
        image_size: Side of the images, or height and width.
        n_val: Training images set apart for validation; with 0, validation uses the test split.
        annotations: Whether items are dicts instead of pairs: `image`, `target` and `boxes` in pixels, (1, 4), or
            (0, 4) where the crop misses the bird.
        augment: Whether training images are changed at random.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
        strict: See `PicturesDataModule`.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of random changes, of the images that `n_val` sets apart and of the order of training.
    """

    num_classes = 200

    def __init__(
        self,
        root: str = "data",
        image_size: int | tuple[int, int] = 224,
        n_val: int = 0,
        annotations: bool = False,
        augment: bool = True,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        strict: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            image_size, annotations, augment, train_transform, eval_transform, strict, batch_size, num_workers, seed
        )
        at_least(0, n_val=n_val)
        self.root, self.n_val = root, n_val
        self.class_names = [f"class {i}" for i in range(self.num_classes)]  # until they are read
        if (self.folder / "classes.txt").is_file():
            self.name_classes()

    @property
    def folder(self) -> Path:
        """Folder with the text files."""
        inner = Path(self.root, "CUB_200_2011")
        return inner if inner.is_dir() or not Path(self.root, "images.txt").is_file() else Path(self.root)

    def name_classes(self) -> None:
        names = [name for (name,) in self.table("classes.txt").values()]
        self.class_names = [name.partition(".")[2].replace("_", " ") for name in names]  # "001.Black_footed_Albatross"
        self.num_classes = len(names)

    def read(self, split: str) -> Pictures:
        self.name_classes()
        names, labels, trained = map(self.table, ("images.txt", "image_class_labels.txt", "train_test_split.txt"))
        from_train = split == "train" or (split == "val" and self.n_val > 0)
        ids = [i for i in names if (trained[i][0] == "1") == from_train]
        if from_train and self.n_val:
            ids = [ids[row] for row in set_apart(len(ids), self.n_val, split, self.seed)]
        files, target = [names[i][0] for i in ids], [int(labels[i][0]) - 1 for i in ids]
        common = (self.folder / "images", files, target)
        if not self.annotations:
            return Pictures(*common, **self.options(split))
        corners = self.table("bounding_boxes.txt")
        boxes = torch.tensor([[float(number) for number in corners[i]] for i in ids])
        boxes[:, 2:] += boxes[:, :2]  # from width and height
        return CUBPictures(boxes, *common, **self.options(split))

    def table(self, name: str) -> dict[str, list[str]]:
        """Return the words of each line of a text file by the first word."""
        file = self.folder / name
        if not file.is_file():
            raise absent("a file of CUB-200-2011", file, f"unpack CUB_200_2011.tgz of {URL} in {self.root}.")
        return {words[0]: words[1:] for words in map(str.split, file.read_text().splitlines()) if words}
