from pathlib import Path

import pytest
import torch
from support.data_trees import BOX, SIZE, bright, waterbirds

from interpretable_training.data import WaterbirdsDataModule


def module(root, stage=None, **options):
    data = WaterbirdsDataModule(str(root), **{"image_size": 16, **options})
    data.setup(stage)
    return data


def numbers(data, split):
    return [int(Path(data.splits[split].file(i)).stem[-4:]) for i in range(len(data.splits[split]))]


@pytest.mark.parametrize("inner", ["", "waterbird_complete95_forest2water2"])
def test_splits_and_classes_are_those_of_the_table(tmp_path, inner):
    waterbirds(tmp_path)
    data = module(tmp_path / inner)
    assert {split: numbers(data, split) for split in data.splits} == {
        "train": [*range(8)],
        "val": [8, 9, 10, 11],
        "test": [12, 13, 14, 15],
    }
    assert [target for _, target in data.splits["val"]] == [0, 1, 0, 1]


def test_groups_are_bird_times_place(tmp_path):
    data = module(waterbirds(tmp_path), annotations=True)
    batch = next(iter(data.val_dataloader()))
    assert batch["cue"].tolist() == [0, 0, 1, 1]
    assert batch["group"].tolist() == [0, 2, 1, 3]
    assert data.group_names == ["landbird, land", "landbird, water", "waterbird, land", "waterbird, water"]


def test_masks_are_what_most_annotators_marked(tmp_path):
    data = module(waterbirds(tmp_path), annotations=True, eval_transform=lambda *item: item)
    item = data.splits["val"][1]
    assert set(item) == {"image", "target", "boxes", "mask", "shortcut_mask", "cue", "group"}
    assert item["boxes"].tolist() == [[*BOX]] == [bright(item["image"], data)]
    x1, y1, x2, y2 = BOX
    inside = torch.zeros(SIZE[1], SIZE[0], dtype=torch.bool)
    inside[y1:y2, x1:x2] = True
    assert torch.equal(item["mask"], inside)
    assert torch.equal(item["shortcut_mask"], ~inside)


def test_pictures_without_a_mask_have_an_empty_one(tmp_path):
    data = module(waterbirds(tmp_path), annotations=True)
    batch = next(iter(data.test_dataloader()))
    assert not batch["mask"].any()
    assert batch["boxes"].isnan().all()
    assert batch["boxes"].shape == (4, 1, 4)


def test_segmentations_are_optional(tmp_path):
    data = module(waterbirds(tmp_path, masks=False), annotations=True)
    assert set(data.splits["train"][0]) == {"image", "target", "cue", "group"}
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["group"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_missing_or_other_tables_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a table of Waterbirds at .*metadata.csv, got none; unpack .*group_DRO"
    ):
        module(tmp_path)
    (tmp_path / "metadata.csv").write_text("img_id,file\n0,a.jpg\n")
    with pytest.raises(ValueError, match=r"expected columns \['img_filename', .*got \['img_id', 'file'\]; take"):
        module(tmp_path)
