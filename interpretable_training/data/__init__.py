"""Data modules: images, targets and, where asked for, masks and boxes.

`ShapesDataModule` draws its images, so that everything runs without a download and the right answer to "where
should the network look?" is known to the pixel. `DigitsDataModule` holds scikit-learn's handwritten digits.
`SeededDataModule` is the base of both, and of your own.
"""

from .base import SeededDataModule
from .digits import DigitsDataModule
from .shapes import ShapesDataModule

__all__ = ["DigitsDataModule", "SeededDataModule", "ShapesDataModule"]
