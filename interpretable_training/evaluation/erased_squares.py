"""Data sets in which squares of images are exchanged at random: what they hold says nothing about the class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from interpretable_training.batches.read import Key, pick


class ErasedSquares(Dataset):
    """Items of a data set; the square of an image that has one is replaced by that of a random image that has one.

    What recurs in these squares then says nothing about the class of the image. The squares change with each access;
    they are drawn from torch's global generator, like random crops.

    >>> covered = ErasedSquares(list(zip(images, target)), {0: (0, 0, 4, 4)})
    >>> (covered[0][0] != images[0])[:, 4:].any().item()
    False

    Args:
        data: Data set with items of any kind that batches can have: tuples, dicts, or images alone.
        squares: Rows and columns (top, left, bottom, right) of the square by the index of the item.
        image_key: Name or index of the image in an item; by default the usual names.
    """

    def __init__(self, data: Any, squares: Mapping[int, tuple[int, int, int, int]], image_key: Key = None) -> None:
        self.data, self.squares = data, dict(squares)
        self.owners = list(self.squares)
        if not len(data):
            raise ValueError("expected a data set with items, got an empty one.")
        beyond = [index for index in self.squares if not 0 <= index < len(data)]
        if beyond:
            raise ValueError(
                f"expected indices below {len(data)}, the number of items, got {beyond[0]}; pass the data set in "
                "which the shortcuts were found."
            )
        self.key = pick(default_collate([data[0]]), image_key).image_key
        if isinstance(self.key, str) and "." in self.key:
            raise TypeError(f"expected images at the first level of an item, got {self.key!r}; flatten the items.")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        index = index if index >= 0 else index + len(self)  # as in a list
        item = self.data[index]
        if index not in self.squares:
            return item
        top, left, bottom, right = self.squares[index]
        owner = self.owners[int(torch.randint(len(self.owners), ()))]
        other, image = self.image(self.data[owner]), self.image(item).clone()
        if image.shape != other.shape:
            raise ValueError(f"expected images of one size, got {tuple(image.shape)} and {tuple(other.shape)}.")
        bottom, right = min(bottom, image.shape[1]), min(right, image.shape[2])
        height, width = bottom - top, right - left  # those of squares at the border are smaller
        y, x = min(self.squares[owner][0], image.shape[1] - height), min(self.squares[owner][1], image.shape[2] - width)
        image[:, top:bottom, left:right] = other[:, y : y + height, x : x + width]
        return self.with_image(item, image)

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch to the data set, where it has random changes of its own."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def image(self, item: Any) -> Tensor:
        """Return the image of an item."""
        if self.key is None:
            return item
        return getattr(item, str(self.key)) if hasattr(item, "_fields") else item[self.key]

    def with_image(self, item: Any, image: Tensor) -> Any:
        """Return an item with another image."""
        if self.key is None:
            return image
        if isinstance(item, Mapping):
            return {**item, self.key: image}
        if hasattr(item, "_fields"):
            return item._replace(**{str(self.key): image})
        return type(item)(image if place == self.key else part for place, part in enumerate(item))
