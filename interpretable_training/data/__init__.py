"""Data modules: images, targets and, where asked for, masks and boxes.

`ShapesDataModule` draws its images, so that everything runs without a download and the right answer to "where
should the network look?" is known to the pixel. `DigitsDataModule` holds scikit-learn's handwritten digits. The others
read photographs: `CIFAR100DataModule`, `ImageNetDataModule`, `CUBDataModule`, `PascalVOCDataModule`, and
`ImageFolderDataModule` any folder of class folders. `SeededDataModule` and `PicturesDataModule` are the bases of them,
and of your own. `CMAPSSDataModule` holds time series of engines, `EnginesDataModule` drawn ones.
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
]
