"""Any folder of class folders, such as Chest X-ray (Kermany et al., 2018) or Kvasir (Pogorelov et al., 2017)."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .base import seeded_generator
from .image_files import absent, by_class, class_folders
from .picture_module import IMAGENET_MEAN, IMAGENET_STD, PicturesDataModule, Transform
from .pictures import Pictures

FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
COLUMNS = ("image", "x1", "y1", "x2", "y2")
Boxes = dict[str, list[list[float]]]


class BoxedPictures(Pictures):
    """Pictures with boxes by the name of their file; other pictures have no boxes."""

    def __init__(self, boxes: Boxes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.boxes = boxes

    def facts(self, index: int) -> dict[str, Any]:
        boxes = self.boxes.get(Path(self.file(index)).as_posix(), [])
        return {**super().facts(index), "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4)}


class ImageFolderDataModule(PicturesDataModule):
    """Read pictures in folders named like their classes, cropped as for torchvision's networks.

    ```python
    data = ImageFolderDataModule("chest_xray", image_size=224, channels=1)  # chest_xray/NORMAL, chest_xray/PNEUMONIA
    ```

    The root holds the class folders, which are then divided by the seed, or `train`, `val` and `test` with class
    folders in each. Without `val`, a share of `train` is set apart for it; without `test`, testing uses `val`, or a
    share of `train` if there is none either. Every class gives the same share.

    Args:
        root: Folder that holds the pictures.
        image_size: Side of the images, or height and width.
        val_share: Share of the pictures that is set apart for validation where the folder has no validation split.
        test_share: Share of the pictures that is set apart for testing where the folder has no test split.
        annotations: Whether items are dicts instead of pairs: `image`, `target` and `boxes` (n, 4) in pixels, n from 0
            on. In batches n is that of the image with most boxes; the others' are filled with NaN.
        boxes: CSV file whose first line is `image,x1,y1,x2,y2` and whose others have one box each, in pixels of the
            picture, x2 and y2 just outside; `image` is the name of its file from the root on, `train/cat/1.png`.
        channels: 3, or 1 for gray.
        mean: Mean of each channel; by default ImageNet's, which pretrained networks want.
        std: Standard deviation of each channel; by default ImageNet's.
        augment: Whether training images are changed at random.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
        strict: See `PicturesDataModule`.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the division, of random changes and of the order of training.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] = 224,
        val_share: float = 0.15,
        test_share: float = 0.15,
        annotations: bool = False,
        boxes: str | None = None,
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
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
        check_shares(val_share, test_share)
        if channels not in (1, 3):
            raise ValueError(f"expected channels 1 (gray) or 3 (color), got {channels}; pass channels=1 or channels=3.")
        self.mean, self.std = _per_channel(channels, mean, IMAGENET_MEAN), _per_channel(channels, std, IMAGENET_STD)
        if annotations and boxes is None:
            raise ValueError(
                f"expected boxes, a CSV file with the columns {','.join(COLUMNS)}, got None with annotations=True; "
                "pass boxes=FILE or annotations=False."
            )
        self.root, self.val_share, self.test_share, self.boxes = root, val_share, test_share, boxes
        if Path(root).is_dir():
            self.name_classes()

    def folders(self) -> dict[str, Path]:
        """Return the folder of each split that has one."""
        places = {split: [Path(self.root, name) for name in names] for split, names in FOLDERS.items()}
        folders = {split: place for split in places for place in places[split][::-1] if place.is_dir()}
        if "train" not in folders:
            return {}
        return {"test": folders["val"], **folders} if "val" in folders else folders

    def name_classes(self) -> None:
        """Set the classes from the names of their folders."""
        source = self.folders().get("train", Path(self.root))
        self.class_names = class_folders(source) if source.is_dir() else []
        self.num_classes = len(self.class_names)
        if not self.class_names:
            raise absent("folders named like classes", source, "pass root=FOLDER with pictures in class folders.")

    def read(self, split: str) -> Pictures:
        self.name_classes()
        root, folders = Path(self.root), self.folders()
        has_folder = split in folders and split != "train"
        source = folders[split if has_folder else "train"] if folders else root
        unknown = sorted({*class_folders(source)} - {*self.class_names})
        if unknown:
            raise ValueError(
                f"expected in {source} folders of the classes in train, {self.class_names}, got {unknown} besides; "
                "rename or move them."
            )
        files, target = by_class(source, root, self.class_names)
        if not has_folder:
            shares = {"val": self.val_share, "test": self.test_share}
            shares = {name: share for name, share in shares.items() if name not in folders}
            rows = divide_by_class(target, shares, self.seed)[split]
            files, target = [files[row] for row in rows], [target[row] for row in rows]
        if not files:
            raise absent(f"pictures for the {split} split", source, "add some, or pass a larger share of all for it.")
        if not self.annotations:
            return Pictures(root, files, target, **self.options(split))
        assert self.boxes is not None
        return BoxedPictures(read_boxes(Path(self.boxes), root), root, files, target, **self.options(split))


def check_shares(val_share: float, test_share: float) -> None:
    """Raise for shares that leave a split without pictures."""
    if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
        raise ValueError(
            f"expected val_share and test_share above 0 and together below 1, got {val_share} and {test_share}; "
            "pass shares such as 0.15."
        )


def _per_channel(channels: int, given: tuple[float, ...] | None, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Return the given mean or deviation, or the usual one, averaged for gray."""
    numbers = tuple(given or (usual if channels == 3 else (round(sum(usual) / 3, 3),)))
    if len(numbers) != channels:
        raise ValueError(f"expected mean and std with one number for each of {channels} channels, got {numbers}.")
    return numbers


def divide_by_class(target: Sequence[int], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Return the rows of each split; every class gives the same shares, and the rest is for training."""
    parts: dict[str, list[int]] = {"train": [], **{name: [] for name in shares}}
    classes = torch.tensor(target)
    for c in sorted({*target}):
        rows = (classes == c).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=seeded_generator(seed, "split", c))]
        counts = [round(share * len(rows)) for share in shares.values()]
        for name, part in zip([*shares, "train"], rows.split([*counts, len(rows) - sum(counts)])):
            parts[name] += part.tolist()
    return {name: sorted(rows) for name, rows in parts.items()}


def read_boxes(file: Path, root: Path) -> Boxes:
    """Return the boxes of each picture in a CSV file."""
    if not file.is_file():
        raise absent("a CSV file of boxes", file, f"its first line is {','.join(COLUMNS)}.")
    boxes: Boxes = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        if not {*COLUMNS} <= {*(table.fieldnames or [])}:
            raise ValueError(f"expected the columns {[*COLUMNS]} in {file}, got {table.fieldnames}; rename them.")
        for row in table:
            boxes.setdefault(row["image"], []).append([float(row[name]) for name in COLUMNS[1:]])
    strange = [name for name in boxes if not os.path.isfile(root / name)]
    if strange:
        raise ValueError(
            f"expected in {file} names of pictures from {root} on, got {strange[:3]}, which are not there; "
            "write them like train/cat/1.png."
        )
    return boxes
