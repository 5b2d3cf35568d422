"""Data modules: images, targets and, where asked for, masks and boxes.

`ShapesDataModule` draws its images, so that everything runs without a download and the right answer to "where
should the network look?" is known to the pixel. `DigitsDataModule` holds scikit-learn's handwritten digits,
`CIFAR100DataModule` the photographs of CIFAR-100. `SeededDataModule` is the base of them, and of your own.
"""

from .base import SeededDataModule
from .cifar100 import CIFAR100DataModule
from .digits import DigitsDataModule
from .shapes import ShapesDataModule

__all__ = ["CIFAR100DataModule", "DigitsDataModule", "SeededDataModule", "ShapesDataModule"]
