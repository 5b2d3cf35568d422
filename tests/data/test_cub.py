import pytest
from support.data_trees import BOX, bright, cub

from interpretable_training.data import CUBDataModule


def module(root, stage=None, **options):
    data = CUBDataModule(str(root), **{"image_size": 16, **options})
    data.setup(stage)
    return data


def names(data, split):
    return [data.splits[split].file(i)[-8:-4] for i in range(len(data.splits[split]))]


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_splits_classes_and_names_are_those_of_the_text_files(tmp_path, inner):
    cub(tmp_path)
    data = module(tmp_path / inner)
    assert {split: names(data, split) for split in data.splits} == {
        "train": ["0000", "0001"] * 2,
        "val": ["0002"] * 2,
        "test": ["0002"] * 2,
    }
    assert [data.splits["train"][i][1] for i in range(4)] == [0, 0, 1, 1]
    assert data.class_names == ["Black footed Albatross", "Laysan Albatross"]
    assert CUBDataModule(str(tmp_path)).class_names == data.class_names
    # The shade of the background is the number of the file: 2 and 5.
    shades = [
        image.min(2).values.min(1).values[0].item() * data.std[0] + data.mean[0] for image, _ in data.splits["test"]
    ]
    assert [round(255 * shade) for shade in shades] == [20, 50]


def test_boxes_are_given_by_width_and_height(tmp_path):
    data = module(cub(tmp_path), annotations=True, eval_transform=lambda *item: item)
    item = data.splits["test"][1]
    assert item["boxes"].tolist() == [[*BOX]]
    assert bright(item["image"], data) == [*BOX]
    assert set(item) == {"image", "target", "boxes"}
    batch = next(iter(data.train_dataloader()))
    assert batch["boxes"].shape == (4, 1, 4)


def test_training_images_can_be_set_apart(tmp_path):
    data = module(cub(tmp_path), n_val=1)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [3, 1, 2]


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a file of CUB-200-2011 at .*classes.txt, got none; unpack .*caltech"):
        module(tmp_path)
    cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    assert len(module(tmp_path).splits["test"]) == 2
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes.txt, got none"):
        module(tmp_path, annotations=True)
