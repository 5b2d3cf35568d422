"""Boxes stay with the pixels that they are about, through crops and into batches."""

import numpy as np
import pytest
import torch
from support.data_trees import BOX, bright, picture
from torch.testing import assert_close
from torchvision.transforms import v2

from interpretable_training.data import ImageFolderDataModule
from interpretable_training.data.base import collate


def boxed(tmp_path, **options):
    """Pictures with one box, in a white rectangle, and one with three and none."""
    lines = ["image,x1,y1,x2,y2"]
    for i in range(6):
        picture(tmp_path / "train" / "cat" / f"{i}.png")
        picture(tmp_path / "val" / "cat" / f"{i}.png")
        lines += [f"{split}/cat/{i}.png,8,4,20,16" for split in ("train", "val") if i != 1]
    lines += ["val/cat/2.png,0,0,3,3", "val/cat/2.png,30,10,40,24"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    data = ImageFolderDataModule(
        str(tmp_path), annotations=True, boxes=str(tmp_path / "boxes.csv"), batch_size=6, **options
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("size", [24, (48, 96), (30, 20)])
def test_boxes_follow_the_pixels(tmp_path, size):
    data = boxed(tmp_path, image_size=size)
    item = data.splits["val"][0]
    assert set(item) == {"image", "target", "boxes"}
    assert item["boxes"].shape == (1, 4)
    assert np.abs(np.subtract(item["boxes"][0].tolist(), bright(item["image"], data))).max() <= 1
    found = set()
    for epoch in range(12):
        data.splits["train"].set_epoch(epoch)
        item = data.splits["train"][0]
        if len(item["boxes"]) and (item["boxes"][0, 2:] - item["boxes"][0, :2]).min() > 3:
            box = item["boxes"][0].tolist()
            assert np.abs(np.subtract(box, bright(item["image"], data))).max() <= 1.5
            found.add(tuple(box))
    assert len(found) > 3


def test_a_resized_box_is_what_arithmetic_says(tmp_path):
    """40 x 24 pixels are enlarged by 32 / 24 to 53 x 32, whose middle 28 x 28 begins at 12 (12.5, to even) and 2."""
    item = boxed(tmp_path, image_size=28).splits["val"][0]
    x1, y1, x2, y2 = BOX
    expected = [x1 * 53 / 40 - 12, y1 * 4 / 3 - 2, x2 * 53 / 40 - 12, y2 * 4 / 3 - 2]
    expected = [max(0.0, value) for value in expected]
    assert_close(item["boxes"][0], torch.tensor(expected), rtol=0, atol=1e-4)


def test_boxes_outside_the_crop_are_dropped_and_batches_padded(tmp_path):
    """The middle 28 of 53 x 32 pixels has nothing of x < 9."""
    data = boxed(tmp_path, image_size=28)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (6, 3, 28, 28)
    assert batch["boxes"].shape == (6, 2, 4)
    there = ~batch["boxes"].isnan().any(2)
    assert there.tolist() == [[True, False], [False, False], [True, True], *[[True, False]] * 3]
    assert_close(batch["boxes"][0, 0], data.splits["val"][0]["boxes"][0])
    assert_close(batch["boxes"][2], data.splits["val"][2]["boxes"])
    assert data.splits["val"][1]["boxes"].shape == (0, 4)


def test_collate_pads_what_there_is_of_each_box():
    items = [
        {"target": 1, "boxes": torch.ones(2, 4), "box_target": torch.tensor([5, 6])},
        {"target": 2, "boxes": torch.zeros(0, 4), "box_target": torch.zeros(0, dtype=torch.int64)},
    ]
    batch = collate(items)
    assert list(batch) == ["target", "boxes", "box_target"]
    assert batch["box_target"].tolist() == [[5, 6], [-1, -1]]
    assert batch["boxes"][0].tolist() == [[1] * 4] * 2
    assert batch["boxes"][1].isnan().all()
    assert batch["target"].tolist() == [1, 2]
    none = collate([items[1], items[1]])
    assert none["boxes"].shape == (2, 1, 4)
    assert none["box_target"].tolist() == [[-1], [-1]]
    assert_close(
        collate([(torch.ones(2), 1), (torch.zeros(2), 0)]), [torch.tensor([[1.0, 1], [0, 0]]), torch.tensor([1, 0])]
    )


def test_boxes_are_clipped_to_the_image(tmp_path):
    """One that leaves the picture on each side, and two outside; this transform changes nothing."""
    picture(tmp_path / "val" / "cat" / "0.png")
    picture(tmp_path / "train" / "cat" / "0.png")
    lines = ["image,x1,y1,x2,y2", "-5,-2,50,90", "-5,3,0,9", "5,24,9,30"]
    (tmp_path / "boxes.csv").write_text("\nval/cat/0.png,".join(lines))
    data = ImageFolderDataModule(
        str(tmp_path), annotations=True, boxes=str(tmp_path / "boxes.csv"), eval_transform=lambda *item: item
    )
    data.setup("validate")
    assert data.splits["val"][0]["boxes"].tolist() == [[0, 0, 40, 24]]


def test_users_transforms_move_boxes_along(tmp_path):
    data = boxed(tmp_path, eval_transform=v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Resize((24, 40))]))
    assert data.splits["val"][0]["boxes"].tolist() == [[40 - 20, 4, 40 - 8, 16]]
