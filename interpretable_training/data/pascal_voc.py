"""PASCAL VOC 2012: photographs with objects of 20 classes, often several (Everingham et al., IJCV 2015)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from .base import at_least
from .image_files import absent
from .picture_module import PicturesDataModule, Transform, set_apart
from .pictures import Pictures
from .voc_xml import read_objects

URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
CLASSES += ["horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
BORDER = 255  # between an object and what is around it


class PascalVOCPictures(Pictures):
    """Photographs with the objects of their XML file and, on request, the mask of each class."""

    def __init__(
        self, folder: Path, names: list[str], annotations: bool, masks: bool, difficult: bool, **options: Any
    ) -> None:
        super().__init__(folder, names, [-1] * len(names), **options)
        self.annotations, self.masks, self.difficult = annotations, masks, difficult

    def file(self, index: int) -> str:
        return f"JPEGImages/{super().file(index)}.jpg"

    def facts(self, index: int) -> dict[str, Any]:
        name = super().file(index)
        things = read_objects(self.root / "Annotations" / f"{name}.xml")
        things = [thing for thing in things if self.difficult or not thing.difficult]
        classes = torch.tensor([CLASSES.index(thing.name) for thing in things], dtype=torch.int64)
        facts: dict[str, Any] = {"target": torch.zeros(len(CLASSES), dtype=torch.int64).index_fill(0, classes, 1)}
        if self.annotations:
            # Corners are numbered from 1, and both belong to the box.
            corners = torch.tensor([thing.box for thing in things], dtype=torch.float32).view(-1, 4)
            facts |= {"boxes": corners - torch.tensor([1, 1, 0, 0]), "box_target": classes}
        if self.masks:
            with Image.open(self.root / "SegmentationClass" / f"{name}.png") as picture:
                mask = torch.from_numpy(np.array(picture))
            facts["mask"] = mask.where(mask != BORDER, 0)
        return facts


class PascalVOCDataModule(PicturesDataModule):
    """Read photographs of VOC 2012, cropped as for torchvision's networks; targets have a 1 for each visible class.

    ```python
    data = PascalVOCDataModule("data", annotations=True, masks=True)  # data/VOCdevkit/VOC2012
    ```

    The root holds `VOCdevkit/VOC2012`, or is one of these folders. The test split is the original `val`, since the
    labels of the original one are not public.

    Args:
        root: Folder that holds, or will hold, the data.
        image_size: Side of the images, or height and width.
        n_val: Training images set apart for validation; with 0, validation uses the test split.
        annotations: Whether items are dicts instead of pairs: `image`, `target` (20,), `boxes` (n, 4) in pixels and
            `box_target` (n,), the class of each. In batches n is that of the image with most boxes; the others' are
            filled with NaN and -1.
        masks: Whether these dicts also have `mask` (H, W), the pixels of objects, and `mask_target` (H, W), the class
            of each pixel, -1 where there is none; borders, which the original leaves open, belong to none. Only the
            1464 and 1449 images with masks are used then, instead of 5717 and 5823.
        difficult: Whether objects count that the annotators found hard to see.
        download: Whether to download the 2 GB archive if the data are not there.
        augment: Whether training images are changed at random.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
        strict: See `PicturesDataModule`.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of random changes, of the images that `n_val` sets apart and of the order of training.
    """

    num_classes = len(CLASSES)
    multilabel = True

    def __init__(
        self,
        root: str = "data",
        image_size: int | tuple[int, int] = 224,
        n_val: int = 0,
        annotations: bool = False,
        masks: bool = False,
        difficult: bool = False,
        download: bool = False,
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
        if masks and not annotations:
            raise ValueError("expected annotations=True with masks=True, got annotations=False; pass annotations=True.")
        self.root, self.n_val, self.masks, self.difficult, self.download = root, n_val, masks, difficult, download
        self.class_names = list(CLASSES)

    @property
    def folder(self) -> Path:
        """Folder with the photographs and their annotations."""
        places = [Path(self.root, inner) for inner in ("VOCdevkit/VOC2012", "VOC2012", "")]
        return next((place for place in places if (place / "JPEGImages").is_dir()), places[0])

    def prepare_data(self) -> None:
        if self.download and not self.folder.is_dir():
            VOCDetection(self.root, year="2012", image_set="trainval", download=True)

    def read(self, split: str) -> Pictures:
        from_train = split == "train" or (split == "val" and self.n_val > 0)
        kind = "Segmentation" if self.masks else "Main"
        file = self.folder / "ImageSets" / kind / f"{'train' if from_train else 'val'}.txt"
        if not file.is_file():
            way_out = f"unpack VOCtrainval_11-May-2012.tar of {URL} in {self.root}, or pass download=True."
            raise absent("a list of the images of VOC 2012", file, way_out)
        names = file.read_text().split()
        if from_train and self.n_val:
            names = [names[row] for row in set_apart(len(names), self.n_val, split, self.seed)]
        return PascalVOCPictures(
            self.folder, names, self.annotations, self.masks, self.difficult, **self.options(split)
        )
