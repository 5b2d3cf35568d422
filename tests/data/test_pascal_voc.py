import numpy as np
import pytest
import torch
from support.data_trees import BOX, bright, voc
from torchvision.datasets import VOCDetection

from interpretable_training.data import PascalVOCDataModule

TRAIN = ["2007_000027", "2007_000032", "2008_000001"]


def module(root, stage=None, **options):
    data = PascalVOCDataModule(str(root), **{"image_size": 16, **options})
    data.setup(stage)
    return data


def classes(data, target):
    return [data.class_names[c] for c in target.nonzero()[:, 0]]


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_targets_say_which_classes_are_seen(tmp_path, inner):
    voc(tmp_path)
    data = module(tmp_path / inner)
    assert [classes(data, target) for _, target in data.splits["train"]] == [["cat", "person"], ["dog"], ["aeroplane"]]
    assert [classes(data, target) for _, target in data.splits["val"]] == [["person", "tvmonitor"], []]
    assert (data.multilabel, data.num_classes, len(data.class_names)) == (True, 20, 20)
    images, target = next(iter(data.test_dataloader()))
    assert images.shape == (2, 3, 16, 16)
    assert (target.shape, target.dtype) == ((2, 20), torch.int64)


def test_objects_that_are_hard_to_see_count_where_wanted(tmp_path):
    data = module(voc(tmp_path), difficult=True, annotations=True, augment=False, eval_transform=lambda *item: item)
    item = data.splits["train"][1]
    assert classes(data, item["target"]) == ["car", "dog"]
    assert [data.class_names[c] for c in item["box_target"]] == ["dog", "dog", "car"]


def test_boxes_have_classes_and_corners_count_from_one(tmp_path):
    data = module(voc(tmp_path), annotations=True, eval_transform=lambda *item: item)
    item = data.splits["val"][0]
    assert set(item) == {"image", "target", "boxes", "box_target"}
    assert item["boxes"].tolist() == [[*BOX], [29, 1, 39, 20]]
    assert bright(item["image"], data) == [*BOX]
    assert [data.class_names[c] for c in item["box_target"]] == ["tvmonitor", "person"]
    batch = next(iter(module(tmp_path, annotations=True, image_size=(24, 40)).val_dataloader()))
    assert (batch["boxes"].shape, batch["box_target"].shape) == ((2, 2, 4), (2, 2))
    assert batch["box_target"][1].tolist() == [-1, -1]
    assert batch["boxes"][1].isnan().all()


def test_a_box_and_its_class_are_dropped_together(tmp_path):
    """A crop of the right half has the person alone."""
    data = module(voc(tmp_path), annotations=True, eval_transform=RightHalf())
    item = data.splits["val"][0]
    assert [data.class_names[c] for c in item["box_target"]] == ["person"]
    assert item["boxes"].tolist() == [[9, 1, 19, 20]]
    assert classes(data, item["target"]) == ["person", "tvmonitor"]


class RightHalf:
    def __call__(self, picture, annotations):
        from torchvision.transforms.v2 import functional as TF

        return TF.crop(picture, 0, 20, 24, 20), {"boxes": TF.crop(annotations["boxes"], 0, 20, 24, 20)}


def test_masks_have_classes_and_borders_belong_to_none(tmp_path):
    data = module(voc(tmp_path), annotations=True, masks=True, eval_transform=lambda *item: item)
    assert [data.splits["train"].file(i) for i in range(len(data.splits["train"]))] == ["JPEGImages/2007_000027.jpg"]
    item = data.splits["val"][0]
    x1, y1, x2, y2 = BOX
    expected = torch.zeros(24, 40, dtype=torch.bool)
    expected[y1:y2, x1:x2] = True
    assert torch.equal(item["mask"], expected)
    assert item["mask_target"].dtype == torch.int64
    assert torch.equal(
        item["mask_target"], torch.full((24, 40), -1).where(~expected, data.class_names.index("tvmonitor"))
    )


def test_masks_follow_the_pixels(tmp_path):
    data = module(voc(tmp_path), annotations=True, masks=True, image_size=(36, 60))
    for epoch in range(8):
        data.splits["train"].set_epoch(epoch)
        for split in ("val", "train"):
            item = data.splits[split][0]
            white = item["image"][0] * data.std[0] + data.mean[0] > 0.5
            assert item["mask"].shape == (36, 60)
            # Along the edges of the box, resampled differently, they may differ.
            assert (white ^ item["mask"]).float().mean() < 0.12
            assert white.sum() == 0 or (white & item["mask"]).sum() / white.sum() > 0.8
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == batch["mask_target"].shape == (1, 36, 60)


def test_masks_need_annotations(tmp_path):
    with pytest.raises(ValueError, match="expected annotations=True with masks=True"):
        PascalVOCDataModule(masks=True)


def test_training_images_can_be_set_apart(tmp_path):
    data = module(voc(tmp_path), n_val=1)
    results = [
        [data.splits[split].file(i)[11:-4] for i in range(len(data.splits[split]))] for split in ("train", "val")
    ]
    assert sorted(results[0] + results[1]) == TRAIN
    assert len(results[1]) == 1


def test_missing_files_are_named_and_nothing_is_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(VOCDetection, "__init__", lambda self, root, **options: asked.append((root, options)))
    data = PascalVOCDataModule(str(tmp_path))
    data.prepare_data()
    assert asked == []
    with pytest.raises(
        FileNotFoundError, match=r"at .*VOCdevkit/VOC2012/ImageSets/Main/train.txt, got none; unpack .*tar"
    ):
        data.setup("fit")
    PascalVOCDataModule(str(tmp_path), download=True).prepare_data()
    assert asked == [(str(tmp_path), {"year": "2012", "image_set": "trainval", "download": True})]
    voc(tmp_path)
    PascalVOCDataModule(str(tmp_path), download=True).prepare_data()
    assert len(asked) == 1


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_missing_xml_file_counts_as_an_unreadable_picture(tmp_path):
    voc(tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2007_000027.xml").unlink()
    data = module(tmp_path, "fit")
    assert classes(data, data.splits["train"][0][1]) == ["dog"]
    assert data.unreadable["train"] == ["JPEGImages/2007_000027.jpg"]


def test_bright_is_where_the_box_is(tmp_path):
    data = module(voc(tmp_path), "validate", annotations=True, image_size=28)
    item = data.splits["val"][0]
    assert np.abs(np.subtract(item["boxes"][0].tolist(), bright(item["image"], data))).max() <= 1
