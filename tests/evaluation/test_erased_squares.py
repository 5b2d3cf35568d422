"""Squares of images that other images' content replaces."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from interpretable_training.evaluation import Shortcuts
from interpretable_training.evaluation.erased_squares import ErasedSquares

IMAGES = torch.arange(3.0)[:, None, None, None].expand(3, 3, 8, 8)  # image i holds the number i


class Item(NamedTuple):
    image: Tensor
    target: int


LAYOUTS = {
    "tuple": lambda i: (IMAGES[i], i),
    "list": lambda i: [IMAGES[i], i],
    "dict": lambda i: {"image": IMAGES[i], "target": i, "mask": IMAGES[i, 0] > 0},
    "namedtuple": lambda i: Item(IMAGES[i], i),
    "image": lambda i: IMAGES[i],
}


def image_of(item):
    return item if isinstance(item, Tensor) else item["image"] if isinstance(item, dict) else item[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_square_changes_and_the_item_stays_what_it_is(layout):
    items = [LAYOUTS[layout](i) for i in range(3)]
    covered = ErasedSquares(items, {1: (2, 3, 5, 7), 2: (0, 0, 3, 4)})
    others = set()
    for _ in range(30):
        item = covered[1]
        assert type(item) is type(items[1])
        image = image_of(item)
        others.add(image[0, 2, 3].item())
        assert (image[:, 2:5, 3:7] == image[0, 2, 3]).all()
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[2:5, 3:7] = False
        assert (image[:, outside] == 1).all()
    assert others == {1.0, 2.0}  # the images that have a square
    assert covered[0] is items[0]
    assert covered[-2] is not items[1]
    assert (IMAGES[1] == 1).all()  # the data set itself is unchanged
    assert len(covered) == 3


def test_the_square_of_another_image_moves_to_the_place_of_the_own():
    images = torch.zeros(2, 1, 8, 8)
    images[1, :, 6:8, 6:8] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    covered = ErasedSquares([(image, 0) for image in images], {0: (0, 1, 2, 3), 1: (6, 6, 8, 8)})
    seen = {tuple(covered[0][0][0, :2, 1:3].flatten().tolist()) for _ in range(30)}
    assert seen == {(0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 3.0, 4.0)}
    large = ErasedSquares([(image, 0) for image in images], {0: (0, 0, 4, 4), 1: (6, 6, 10, 10)})
    assert {large[i][0].shape for i in (0, 1) for _ in range(20)} == {(1, 8, 8)}  # squares end with the image


def test_batches_of_a_loader_keep_their_entries():
    batch = next(iter(DataLoader(ErasedSquares([LAYOUTS["dict"](i) for i in range(3)], {0: (0, 0, 2, 2)}), 3)))
    assert batch["target"].tolist() == [0, 1, 2]
    assert set(batch) == {"image", "target", "mask"}


def test_the_epoch_reaches_the_data_set():
    class Changing(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    items = Changing(LAYOUTS["tuple"](i) for i in range(3))
    ErasedSquares(items, {}).set_epoch(4)
    assert items.epoch == 4
    ErasedSquares(list(items), {}).set_epoch(4)  # nothing to tell


def test_found_squares_are_erased_with_a_margin_within_the_image():
    corners = torch.tensor([[0, 2], [5, 5], [1, 1]])
    kind, numbers = torch.tensor([0, -1, 0]), torch.arange(3)
    shortcuts = Shortcuts([], torch.tensor([2, 1, 0]), numbers, numbers, kind, corners, 2, torch.zeros(3, 8, 8))
    covered = shortcuts.erase([LAYOUTS["tuple"](i) for i in range(3)], margin=1)
    assert covered.squares == {2: (0, 1, 3, 5), 0: (0, 0, 4, 4)}


def test_bad_input_is_refused():
    items = [LAYOUTS["tuple"](i) for i in range(3)]
    with pytest.raises(ValueError, match="expected indices below 3, the number of items, got 3; pass the data set"):
        ErasedSquares(items, {3: (0, 0, 2, 2)})
    with pytest.raises(ValueError, match="expected a data set with items, got an empty one"):
        ErasedSquares([], {})
    with pytest.raises(TypeError, match=r"first level of an item, got '0\.image'"):
        ErasedSquares([({"image": IMAGES[0]}, 0)], {})
    other_size = [items[0], (torch.zeros(3, 4, 4), 1)]
    with pytest.raises(ValueError, match="expected images of one size"):
        [ErasedSquares(other_size, {0: (0, 0, 2, 2), 1: (0, 0, 2, 2)})[0] for _ in range(30)]
