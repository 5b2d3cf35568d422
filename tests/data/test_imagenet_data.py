import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.data_trees import BOX, WNIDS, bright, imagenet, picture, xml
from torchvision.models import ResNet50_Weights

from interpretable_training.data import ImageNetDataModule


def module(root, stage=None, **options):
    data = ImageNetDataModule(str(root), **{"image_size": 16, **options})
    data.setup(stage)
    return data


def names(data, split):
    return [data.splits[split].file(i) for i in range(len(data.splits[split]))]


def targets(data, split):
    return [data.splits[split][i][1] for i in range(len(data.splits[split]))]


def test_class_folders(tmp_path):
    data = module(imagenet(tmp_path))
    for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
        assert names(data, split) == [f"{folder}/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2)]
        assert targets(data, split) == [0, 0, 1, 1, 2, 2]
    assert (data.num_classes, data.class_names) == (3, WNIDS)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_training_images_can_be_set_apart(tmp_path):
    data = module(imagenet(tmp_path, train=5), n_val=4)
    train, val = names(data, "train"), names(data, "val")
    assert (len(train), len(val), len({*train, *val})) == (11, 4, 15)
    assert names(data, "test")[0].startswith("val")
    assert [WNIDS[c] for c in targets(data, "val")] == [Path(name).parts[1] for name in val]
    with pytest.raises(ValueError, match="expected n_val below 15, the number of training images, got 15"):
        module(tmp_path, n_val=15)


def flat(root):
    """Validation photographs all together, of classes 2, 0, 1, 2."""
    for i in range(1, 5):
        picture(root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    for wnid in WNIDS:
        picture(root / "train" / wnid / f"{wnid}_0.JPEG")
    return root


def devkit(root):
    """The files of the devkit, which numbers the classes in another order than that of their folders."""
    scipy_io = pytest.importorskip("scipy.io")
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    for row, (number, wnid) in enumerate([(1, WNIDS[2]), (2, WNIDS[0]), (3, WNIDS[1]), (1001, "n00001740")]):
        synsets[row] = (float(number), wnid, "words, more words", 0.0)
    scipy_io.savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n")


def test_the_original_layout_of_validation(tmp_path):
    devkit(flat(tmp_path))
    data = module(tmp_path)
    assert names(data, "val") == [f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in range(1, 5)]
    assert targets(data, "val") == [2, 0, 1, 2]
    assert targets(data, "train") == [0, 1, 2]


@pytest.mark.parametrize("sorted_into_folders", [False, True])
def test_photographs_of_unknown_classes_are_left_out(tmp_path, sorted_into_folders):
    if sorted_into_folders:
        imagenet(tmp_path)
    else:
        devkit(flat(tmp_path))
    shutil.rmtree(tmp_path / "train" / WNIDS[0])
    data = module(tmp_path, "validate")
    assert (data.num_classes, data.class_names) == (2, WNIDS[1:])
    assert targets(data, "val") == ([0, 0, 1, 1] if sorted_into_folders else [1, 0, 1])


def test_validation_alone_in_the_original_layout(tmp_path):
    devkit(flat(tmp_path))
    shutil.rmtree(tmp_path / "train")
    data = module(tmp_path, "validate")
    assert targets(data, "val") == [2, 0, 1, 2]
    assert data.num_classes == 3


def test_missing_scipy_names_the_extra(tmp_path, monkeypatch):
    devkit(flat(tmp_path))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"expected scipy, .*meta.mat', .*interpretable-training\[data\]"):
        module(tmp_path, "validate")


def test_kaggles_layout(tmp_path):
    flat(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    rows = [
        f"ILSVRC2012_val_0000000{i},{WNIDS[c]} 1 2 3 4 {WNIDS[c]} 5 6 7 8 " for i, c in ((3, 1), (1, 2), (4, 2), (2, 0))
    ]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    words = ["tench, Tinca tinca", "tabby, tabby cat", "toilet tissue, toilet paper"]
    lines = [f"{wnid} {text}" for wnid, text in zip(WNIDS, words)]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    xml(
        tmp_path / "ILSVRC" / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.xml",
        [(WNIDS[2], (8, 4, 19, 15), False)],
    )
    data = module(tmp_path, "validate", annotations=True, image_size=28)
    assert data.class_names == ["tench", "tabby", "toilet tissue"]
    items = [data.splits["val"][i] for i in range(4)]
    assert [item["target"] for item in items] == [2, 0, 1, 2]
    assert [len(item["boxes"]) for item in items] == [1, 0, 0, 0]


def test_boxes_are_those_of_the_xml_files(tmp_path):
    """Corners in them belong to the box and are numbered from 0."""
    imagenet(tmp_path)
    x1, y1, x2, y2 = BOX
    for split, folder in (("train", f"train/{WNIDS[1]}"), ("val", "val")):
        file = tmp_path / "Annotations" / "CLS-LOC" / folder / f"{WNIDS[1]}_0.xml"
        things = [(WNIDS[1], (x1, y1, x2 - 1, y2 - 1), False)]
        xml(file, [*things, (WNIDS[1], (0, 0, 39, 23), False)] if split == "train" else things)
    data = module(tmp_path, annotations=True, image_size=(24, 40), eval_transform=lambda *item: item, augment=False)
    assert data.splits["val"][2]["boxes"].tolist() == [[*BOX]]
    assert data.splits["train"][2]["boxes"].tolist() == [[*BOX], [0, 0, 40, 24]]
    assert data.splits["train"][3]["boxes"].shape == (0, 4)
    item = module(tmp_path, annotations=True, image_size=28).splits["val"][2]
    assert np.abs(np.subtract(item["boxes"][0].tolist(), bright(item["image"], data))).max() <= 1
    batch = next(iter(data.train_dataloader()))
    assert batch["boxes"].shape == (6, 2, 4)
    assert set(batch) == {"image", "target", "boxes"}


def test_boxes_can_lie_elsewhere(tmp_path):
    imagenet(tmp_path / "images")
    xml(tmp_path / "bbox" / "val" / f"{WNIDS[0]}_0.xml", [(WNIDS[0], (1, 2, 3, 4), False)])
    data = module(
        tmp_path / "images", "validate", annotations=True, boxes=str(tmp_path / "bbox"), eval_transform=lambda *x: x
    )
    assert data.splits["val"][0]["boxes"].tolist() == [[1, 2, 4, 5]]
    with pytest.raises(FileNotFoundError, match=r"expected the XML files of the boxes at .*Annotations/CLS-LOC/val"):
        module(tmp_path / "images", "validate", annotations=True)


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_an_xml_file_that_cannot_be_read_counts_as_such(tmp_path):
    imagenet(tmp_path)
    file = tmp_path / "Annotations" / "CLS-LOC" / "val" / f"{WNIDS[0]}_0.xml"
    xml(file, [])
    file.write_text(file.read_text()[:50])
    data = module(tmp_path, "validate", annotations=True)
    assert data.splits["val"][0]["target"] == 0
    assert data.unreadable == {"val": [f"val/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"]}


def test_the_thousand_classes_have_names(tmp_path):
    """Those of torchvision's networks, in the order of the folders."""
    middle = [f"n{i:08d}" for i in range(2000000, 2000998)]
    for wnid in ["n01440764", *middle, "n15075141"]:
        (tmp_path / "train" / wnid).mkdir(parents=True)
    data = ImageNetDataModule(str(tmp_path))
    assert data.class_names == ResNet50_Weights.DEFAULT.meta["categories"]
    assert (data.class_names[0], data.num_classes) == ("tench", 1000)


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
    where = r"get ILSVRC 2012 from https://image-net.org/download-images .* or https://www.kaggle.com"
    with pytest.raises(
        FileNotFoundError, match=rf"expected photographs of ImageNet in 'train' at .*/train, got none; {where}"
    ):
        module(tmp_path, "fit")
    flat(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the classes of the validation photographs at .*ground_truth.txt"):
        module(tmp_path, "validate")
