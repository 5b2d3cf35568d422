"""ImageNet: 1.28 million photographs in 1000 classes, 50 000 for validation (Russakovsky et al., IJCV 2015)."""

import csv
import os
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet50_Weights

from .base import at_least
from .image_files import absent, by_class, class_folders, pictures_in
from .picture_module import PicturesDataModule, Transform, set_apart
from .pictures import Pictures
from .voc_xml import read_objects

KAGGLE = "https://www.kaggle.com/c/imagenet-object-localization-challenge"
URL = f"https://image-net.org/download-images (after registration) or {KAGGLE}"
PLACES = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # of the folders train and val
BOXES = ("Annotations/CLS-LOC", "ILSVRC/Annotations/CLS-LOC")
DEVKIT = "ILSVRC2012_devkit_t12/data"


class ImageNetPictures(Pictures):
    """Photographs with boxes from XML files; those without such a file have no box."""

    def __init__(self, boxes: Path, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.boxes = boxes

    def facts(self, index: int) -> dict[str, Any]:
        name = Path(self.file(index)).with_suffix(".xml")
        places = (self.boxes / name.parent.name / name.name, self.boxes / name.name)  # validation's are not in folders
        corners = [thing.box for place in places if place.is_file() for thing in read_objects(place)]
        # Corners are numbered from 0, and both belong to the box.
        boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 4) + torch.tensor([0, 0, 1, 1])
        return {**super().facts(index), "boxes": boxes}


class ImageNetDataModule(PicturesDataModule):
    """Read photographs of ILSVRC 2012, cropped as for torchvision's networks.

    ```python
    data = ImageNetDataModule("imagenet", annotations=True)  # imagenet/train, imagenet/val, imagenet/Annotations
    ```

    The root holds `train` and `val`, there or in `ILSVRC/Data/CLS-LOC` as Kaggle's archive does. `train` has a folder
    for each class. `val` has them too, or all photographs together as in the original; their classes are then taken
    from Kaggle's `LOC_val_solution.csv` or from `ILSVRC2012_devkit_t12` in the root. Classes are numbered in the order
    of their folders, as in pretrained networks; photographs in `val` of classes that `train` does not have are left
    out. The test split is `val`, since the labels of the original one are not public.

    Args:
        root: Folder that holds the data.
        image_size: Side of the images, or height and width.
        n_val: Training images set apart for validation; with 0, validation uses `val` as well.
        annotations: Whether items are dicts instead of pairs: `image`, `target` and `boxes` (n, 4) in pixels, n from 0
            on. About half of the training images have boxes.
        boxes: Folder whose `train` and `val` hold the XML files of the boxes; by default `Annotations/CLS-LOC` or
            `ILSVRC/Annotations/CLS-LOC` in the root.
        augment: Whether training images are changed at random.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
        strict: See `PicturesDataModule`.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of random changes, of the images that `n_val` sets apart and of the order of training.
    """

    num_classes = 1000

    def __init__(
        self,
        root: str = "imagenet",
        image_size: int | tuple[int, int] = 224,
        n_val: int = 0,
        annotations: bool = False,
        boxes: str | None = None,
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
        self.root, self.n_val, self.boxes = root, n_val, boxes
        self.class_names = list(ResNet50_Weights.DEFAULT.meta["categories"])
        if any(self.place(split).is_dir() for split in ("train", "val")):
            self.name_classes()

    def place(self, split: str) -> Path:
        """Return the folder `train` or `val`."""
        places = [Path(self.root, place, split) for place in PLACES]
        return next((place for place in places if place.is_dir()), places[0])

    def name_classes(self) -> list[str]:
        """Return WordNet's numbers of the classes, and set their names."""
        places = [place for place in map(self.place, ("train", "val")) if place.is_dir()]
        wnids = next(filter(None, map(class_folders, places)), None) or sorted(set(self.truth().values()))
        file = Path(self.root, "LOC_synset_mapping.txt")
        lines = file.read_text().splitlines() if file.is_file() else []
        names = {wnid: words.split(",")[0] for wnid, _, words in (line.partition(" ") for line in lines)}
        usual = ResNet50_Weights.DEFAULT.meta["categories"]
        if len(wnids) == len(usual) and (wnids[0], wnids[-1]) == ("n01440764", "n15075141"):
            names = dict(zip(wnids, usual))
        self.class_names, self.num_classes = [names.get(wnid, wnid) for wnid in wnids], len(wnids)
        return wnids

    def read(self, split: str) -> Pictures:
        from_train = split == "train" or (split == "val" and self.n_val > 0)
        name = "train" if from_train else "val"
        folder = self.place(name)
        files, target = self.list_files(folder)
        if not files:
            raise absent(f"photographs of ImageNet in {name!r}", folder, f"get ILSVRC 2012 from {URL}.")
        if from_train and self.n_val:
            rows = set_apart(len(files), self.n_val, split, self.seed)
            files, target = [files[i] for i in rows], [target[i] for i in rows]
        if not self.annotations:
            return Pictures(Path(self.root), files, target, **self.options(split))
        return ImageNetPictures(self.boxes_of(name), Path(self.root), files, target, **self.options(split))

    def list_files(self, folder: Path) -> tuple[list[str], list[int]]:
        """Return names and classes of the photographs in `train` or `val`."""
        if not folder.is_dir():
            return [], []
        wnids, root = self.name_classes(), Path(self.root)
        if class_folders(folder):
            return by_class(folder, root, wnids)
        truth, numbers = self.truth(), {wnid: i for i, wnid in enumerate(wnids)}
        labeled = [(file, numbers.get(truth[Path(file).stem])) for file in pictures_in(folder, root)]
        known = [(file, number) for file, number in labeled if number is not None]
        return [file for file, _ in known], [number for _, number in known]

    def boxes_of(self, split: str) -> Path:
        """Return the folder of the XML files of `train` or `val`."""
        folders = [Path(self.boxes)] if self.boxes else [Path(self.root, place) for place in BOXES]
        for folder in folders:
            if (folder / split).is_dir():
                return folder / split
        raise absent(
            "the XML files of the boxes", folders[0] / split, f"get them from {URL}, or name their folder with boxes=."
        )

    def truth(self) -> dict[str, str]:
        """Return WordNet's number of each validation photograph, for a `val` without class folders."""
        solution, devkit = Path(self.root, "LOC_val_solution.csv"), Path(self.root, DEVKIT)
        if solution.is_file():
            with solution.open(newline="") as lines:
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        file = devkit / "ILSVRC2012_validation_ground_truth.txt"
        if not file.is_file():
            raise absent(
                "the classes of the validation photographs",
                file,
                f"unpack ILSVRC2012_devkit_t12.tar.gz of {URL} there, or put Kaggle's LOC_val_solution.csv into "
                f"{self.root}, or sort the photographs into a folder for each class.",
            )
        numbers = wnids_of(devkit / "meta.mat")
        known = enumerate(file.read_text().split(), 1)
        return {f"ILSVRC2012_val_{i:08d}": numbers[int(number)] for i, number in known}


def wnids_of(meta: Path) -> dict[int, str]:
    """Return WordNet's numbers by those of the devkit, which numbers the classes differently."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"expected scipy, which reads {os.fspath(meta)!r}, got no such package; "
            'run pip install "interpretable-training[data]".'
        ) from error
    synsets = loadmat(meta, squeeze_me=True, struct_as_record=True)["synsets"]
    return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
