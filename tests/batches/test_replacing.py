from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from interpretable_training.batches.read import pick
from interpretable_training.batches.replacing import replace_images

Named = namedtuple("Named", ["image", "target"])


@dataclass(frozen=True)
class Frozen:
    image: torch.Tensor
    target: torch.Tensor


BATCHES = {
    "dict": lambda image, target: {"image": image, "target": target},
    "user dict": lambda image, target: UserDict(image=image, target=target),
    "read-only dict": lambda image, target: MappingProxyType({"image": image, "target": target}),
    "list": lambda image, target: [image, target],
    "tuple": lambda image, target: (image, target),
    "named tuple": Named,
    "frozen dataclass": Frozen,
    "object": lambda image, target: SimpleNamespace(image=image, target=target),
    "nested": lambda image, target: ({"image": image, "mask": image[:, 0] > 0}, target),
    "dict of dicts": lambda image, target: {"a": {"image": image}, "target": target},
    "the images": lambda image, target: image,
}


@pytest.mark.parametrize("kind", BATCHES)
def test_images_of_any_batch_are_replaced_and_put_back(kind):
    images, target, others = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), torch.ones(2, 3, 4, 4)
    batch = BATCHES[kind](images, target)
    put_back = replace_images(batch, pick(batch).images, others)
    assert torch.equal(pick(batch).images, others)
    assert pick(batch).target is (None if kind == "the images" else target)
    put_back()
    assert pick(batch).images is images
    assert not images.any()


@pytest.mark.parametrize("kind", ["dict", "list", "frozen dataclass", "dict of dicts"])
def test_the_tensor_itself_is_not_written_where_its_entry_can_change(kind):
    images = torch.zeros(2, 3, 4, 4)
    batch = BATCHES[kind](images, torch.tensor([0, 1]))
    replace_images(batch, images, torch.ones(2, 3, 4, 4))
    assert not images.any()
