from pathlib import Path

import pytest
from support.data_trees import folders, picture
from torch.testing import assert_close

from interpretable_training.data import ImageFolderDataModule
from interpretable_training.data.image_folder import divide_by_class


def module(root, stage=None, **options):
    data = ImageFolderDataModule(str(root), **{"image_size": 16, **options})
    data.setup(stage)
    return data


def names(data, split):
    return [data.splits[split].file(i) for i in range(len(data.splits[split]))]


def test_one_folder_is_divided_by_the_seed_alike_in_every_class(tmp_path):
    """As Kvasir, which has class folders and no split."""
    folders(tmp_path, (20, 10, 40))
    data = module(tmp_path, val_share=0.1, test_share=0.2)
    counts = {
        split: [sum(Path(name).parts[0] == c for name in names(data, split)) for c in data.class_names]
        for split in data.splits
    }
    assert counts == {"train": [14, 7, 28], "val": [2, 1, 4], "test": [4, 2, 8]}
    everything = [name for split in data.splits for name in names(data, split)]
    assert len({*everything}) == 70
    again, other = (module(tmp_path, seed=seed, val_share=0.1, test_share=0.2) for seed in (0, 1))
    assert all(names(again, split) == names(data, split) for split in data.splits)
    assert names(other, "test") != names(data, "test")
    assert (data.num_classes, data.class_names, data.multilabel) == (3, ["bird", "cat", "dog"], False)


def test_targets_are_the_classes_of_the_folders(tmp_path):
    data = module(folders(tmp_path, (7, 7, 7)))
    for split in data.splits:
        results = [data.splits[split][i][1] for i in range(len(data.splits[split]))]
        assert [data.class_names[c] for c in results] == [Path(name).parts[0] for name in names(data, split)]


def test_what_one_class_gives_does_not_depend_on_the_others():
    alone = divide_by_class([0] * 10, {"val": 0.3}, 0)
    among = divide_by_class([0] * 10 + [1] * 5, {"val": 0.3}, 0)
    assert [row for row in among["val"] if row < 10] == alone["val"]
    assert len(alone["val"]) == 3
    alike = divide_by_class([0] * 20 + [1] * 20, {"val": 0.5}, 0)["val"]
    assert [row + 20 for row in alike[:10]] != alike[10:]


def test_folders_of_splits_are_used(tmp_path):
    """As Chest X-ray, with `train`, `val` and `test`."""
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        folders(tmp_path / split, (count, count), ("NORMAL", "PNEUMONIA"))
    data = module(tmp_path)
    assert {split: len(one) for split, one in data.splits.items()} == {"train": 10, "val": 4, "test": 6}
    assert all(name.startswith(split) for split in data.splits for name in names(data, split))
    assert data.class_names == ["NORMAL", "PNEUMONIA"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_without_test_testing_uses_val(tmp_path, name):
    folders(tmp_path / "train", (5, 5))
    folders(tmp_path / name, (2, 2))
    data = module(tmp_path)
    assert len(data.splits["train"]) == 10
    assert names(data, "val") == names(data, "test")
    assert names(data, "val")[0].startswith(name)


def test_without_val_a_share_of_train_is_set_apart(tmp_path):
    folders(tmp_path / "train", (10, 20))
    folders(tmp_path / "test", (2, 2))
    data = module(tmp_path, val_share=0.2)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [24, 6, 4]
    assert not {*names(data, "train")} & {*names(data, "val")}


def test_with_train_alone_both_are_set_apart(tmp_path):
    folders(tmp_path / "train", (10, 20))
    data = module(tmp_path, val_share=0.2, test_share=0.1)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [21, 6, 3]


def test_gray_images_have_one_channel(tmp_path):
    picture(tmp_path / "train" / "cat" / "0.png", shade=100)
    picture(tmp_path / "val" / "cat" / "0.png", shade=100)
    data = module(tmp_path, channels=1)
    image = data.splits["val"][0][0]
    assert image.shape == (1, 16, 16)
    assert (data.mean, data.std) == ((0.449,), (0.226,))
    assert_close(image.min().item(), (100 / 255 - 0.449) / 0.226, rtol=0, atol=1e-5)
    own = module(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert_close(own.splits["val"][0][0][1].min().item(), (100 / 255 - 0.2) / 0.5, rtol=0, atol=1e-5)


def test_classes_are_known_before_setup_where_the_folder_is_there(tmp_path):
    data = ImageFolderDataModule(folders(tmp_path, (1, 1, 1)))
    assert (data.num_classes, data.class_names) == (3, ["bird", "cat", "dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 0.0}, "expected val_share and test_share above 0"),
        ({"val_share": 0.5, "test_share": 0.5}, "together below 1, got 0.5 and 0.5; pass"),
        ({"channels": 4}, r"expected channels 1 \(gray\) or 3 \(color\), got 4; pass"),
        ({"annotations": True}, "expected boxes, a CSV file with the columns image,x1,y1,x2,y2, got None"),
        ({"mean": (0.5,)}, "expected mean and std with one number for each of 3 channels, got"),
        ({"image_size": 0}, "expected image_size >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule("nowhere", **options)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected folders named like classes at .*gone, got none; pass root"):
        module(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="expected folders named like classes"):
        module(tmp_path)
    folders(tmp_path, (2, 2))
    with pytest.raises(FileNotFoundError, match=r"expected pictures for the val split at .*larger share"):
        module(tmp_path)


def test_classes_that_training_does_not_have_are_named(tmp_path):
    folders(tmp_path / "train", (2, 2))
    folders(tmp_path / "val", (2, 2, 2))
    with pytest.raises(ValueError, match=r"folders of the classes in train, \['bird', 'cat'\], got \['dog'\] besides"):
        module(tmp_path, "validate")


def test_mistakes_in_the_boxes_are_named(tmp_path):
    folders(tmp_path / "data", (8, 8))
    boxes = tmp_path / "boxes.csv"
    options = {"annotations": True, "boxes": str(boxes)}
    with pytest.raises(FileNotFoundError, match=r"expected a CSV file of boxes at .*; its first line is image,x1"):
        module(tmp_path / "data", **options)
    boxes.write_text("file,x1,y1,x2,y2\n")
    with pytest.raises(ValueError, match=r"expected the columns \['image', .* got \['file', "):
        module(tmp_path / "data", **options)
    boxes.write_text("image,x1,y1,x2,y2\n000.png,1,1,2,2\n")
    with pytest.raises(ValueError, match=r"names of pictures from .*data on, got \['000.png'\]"):
        module(tmp_path / "data", **options)
