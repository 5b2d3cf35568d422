"""Waterbirds: 11 788 birds of CUB-200-2011 cut out and put on land or water (Sagawa et al., ICLR 2020).

https://arxiv.org/abs/1911.08731. Most training images show waterbirds on water and landbirds on land; in validation and
test images the background does not depend on the bird.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .base import SPLITS
from .image_files import absent
from .picture_module import PicturesDataModule, Transform
from .pictures import Pictures

URL = "https://github.com/kohpangwei/group_DRO"
COLUMNS = ("img_filename", "y", "split", "place")
MASKS = "segmentations"


class WaterbirdsPictures(Pictures):
    """Pictures with their background and, where CUB's segmentations are there, the mask of the bird."""

    def __init__(self, place: list[int], annotations: bool, masks: Path | None, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.place, self.annotations, self.masks = np.array(place, dtype=np.int64), annotations, masks

    def facts(self, index: int) -> dict[str, Any]:
        facts = super().facts(index)
        if not self.annotations:
            return facts
        place = int(self.place[index])
        facts |= {"boxes": torch.zeros(0, 4), "cue": place, "group": 2 * facts["target"] + place}
        if self.masks is not None:
            facts["mask"] = self.mask(index)
            y, x = facts["mask"].nonzero().T
            if len(x):
                edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                facts["boxes"] = torch.stack(edges)[None].float()
        return facts

    def mask(self, index: int) -> torch.Tensor:
        """Return the pixels of the bird that most annotators marked (H, W); none where its file is missing."""
        assert self.masks is not None
        file = (self.masks / self.file(index)).with_suffix(".png")
        if not file.is_file():
            width, height = self.read(index).size
            return torch.zeros(height, width, dtype=torch.uint8)
        with Image.open(file) as picture:
            return torch.from_numpy((np.array(picture.convert("L")) > 127).astype(np.uint8))

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        if not isinstance(item, dict):
            return item
        if self.masks is None:
            del item["boxes"]
        else:
            del item["mask_target"]  # one object per picture
            item["shortcut_mask"] = ~item["mask"]
        return item


class WaterbirdsDataModule(PicturesDataModule):
    """Read birds on land or water, cropped as for torchvision's networks; groups are those of the paper.

    ```python
    data = WaterbirdsDataModule("data", annotations=True)  # data/waterbird_complete95_forest2water2/metadata.csv
    data.group_names  # ["landbird, land", "landbird, water", "waterbird, land", "waterbird, water"]
    ```

    The root holds `waterbird_complete95_forest2water2`, or is it. For masks of birds, unpack CUB's `segmentations.tgz`
    in either folder.

    Args:
        root: Folder that holds the data.
        image_size: Side of the images, or height and width.
        annotations: Whether items are dicts instead of pairs: `image`, `target`, `cue` (0 land, 1 water), `group`
            (2 * target + cue) and, where there are segmentations, `mask` (H, W), `boxes` (1, 4) around it and
            `shortcut_mask` (H, W), the background. A picture without a file of its own has an empty mask.
        augment: Whether training images are changed at random.
        train_transform: See `PicturesDataModule`.
        eval_transform: See `PicturesDataModule`.
        strict: See `PicturesDataModule`.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of random changes and of the order of training.
    """

    num_classes = 2

    def __init__(
        self,
        root: str = "data",
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
        super().__init__(
            image_size, annotations, augment, train_transform, eval_transform, strict, batch_size, num_workers, seed
        )
        self.root = root
        self.class_names, self.cue_names = ["landbird", "waterbird"], ["land", "water"]

    @property
    def folder(self) -> Path:
        """Folder with `metadata.csv`."""
        inner = Path(self.root, "waterbird_complete95_forest2water2")
        return inner if inner.is_dir() or not Path(self.root, "metadata.csv").is_file() else Path(self.root)

    def read(self, split: str) -> Pictures:
        rows = [row for row in self.table() if row["split"].strip() == str(SPLITS.index(split))]
        files = [row["img_filename"] for row in rows]
        target, place = ([int(row[name]) for row in rows] for name in ("y", "place"))
        places = [folder / MASKS for folder in (self.folder, Path(self.root))]
        masks = next((place for place in places if place.is_dir()), None)
        options = self.options(split)
        return WaterbirdsPictures(place, self.annotations, masks, self.folder, files, target, **options)

    def table(self) -> list[dict[str, str]]:
        """Return the rows of `metadata.csv`."""
        file = self.folder / "metadata.csv"
        if not file.is_file():
            way_out = f"unpack waterbird_complete95_forest2water2.tar.gz of {URL} in {self.root}."
            raise absent("a table of Waterbirds", file, way_out)
        with open(file, newline="") as lines:
            rows = list(csv.DictReader(lines))
        if not rows or not {*COLUMNS} <= rows[0].keys():
            columns = list(rows[0]) if rows else []
            raise ValueError(f"expected columns {list(COLUMNS)} in {file}, got {columns}; take the original file.")
        return rows
