"""Data modules: images and targets, on request with masks and boxes.

`ShapesDataModule` draws its images: it needs no download, and the pixels of the object are known. `DigitsDataModule`
holds scikit-learn's handwritten digits. `CIFAR100DataModule`, `ImageNetDataModule`, `CUBDataModule`,
`WaterbirdsDataModule`, `PascalVOCDataModule` and `ImageFolderDataModule` (any folder of class folders) read pictures.
`SeededDataModule` and `PicturesDataModule` are their bases, and those of your own. `CMAPSSDataModule` reads time series
of engines, `EnginesDataModule` draws them.
"""

from .base import SeededDataModule
from .cifar100 import CIFAR100DataModule
from .cmapss import CMAPSSDataModule
from .cub import CUBDataModule
from .digits import DigitsDataModule
from .image_folder import ImageFolderDataModule
from .imagenet import ImageNetDataModule
from .pascal_voc import PascalVOCDataModule
from .picture_module import PicturesDataModule
from .shapes import ShapesDataModule
from .synthetic_engines import EnginesDataModule
from .waterbirds import WaterbirdsDataModule

__all__ = [
    "CIFAR100DataModule",
    "CMAPSSDataModule",
    "CUBDataModule",
    "DigitsDataModule",
    "EnginesDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "PascalVOCDataModule",
    "PicturesDataModule",
    "SeededDataModule",
    "ShapesDataModule",
    "WaterbirdsDataModule",
]
