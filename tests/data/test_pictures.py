"""What every data module of pictures promises, on folders of small files."""

import copy
import multiprocessing
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.data_trees import BOX, bright, broken, folders, noise, picture
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from interpretable_training.data import ImageFolderDataModule
from interpretable_training.data.base import collate
from interpretable_training.data.pictures import read_picture


def module(root, **options):
    options = {"image_size": 16, "batch_size": 4, "val_share": 0.2, "test_share": 0.2, **options}
    data = ImageFolderDataModule(str(root), **options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("pictures"), (10, 10, 5))


def epochs(data, count=2):
    loader = data.train_dataloader()
    return [torch.cat([images for images, _ in loader]) for _ in range(count)]


def test_preparing_is_that_of_torchvisions_weights():
    """Its own transform is an independent implementation."""
    usual, random_state = ResNet50_Weights.IMAGENET1K_V1.transforms(), np.random.default_rng(0)
    ours = ImageFolderDataModule("nowhere").transform("val")
    for width, height in ((300, 260), (260, 300), (500, 333), (100, 224)):
        pixels = Image.fromarray(random_state.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = usual(pixels)
        results = v2.functional.normalize(
            v2.functional.to_dtype(v2.functional.to_image(ours(pixels)), torch.float32, scale=True),
            list(ImageFolderDataModule.mean),
            list(ImageFolderDataModule.std),
        )
        assert_close(results.as_subclass(torch.Tensor), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 40), (40, 16), (21, 21), 32])
def test_images_have_the_size_that_is_asked_for(root, size):
    data = module(root, image_size=size)
    for split in ("train", "val"):
        assert data.splits[split][0][0].shape == (3, *(size if isinstance(size, tuple) else (size, size)))


def test_random_changes_differ_by_epoch_not_by_worker_or_run(root):
    torch.manual_seed(1)
    alone = epochs(module(root))
    torch.manual_seed(2)
    shared = epochs(module(root, num_workers=2))
    assert_close(shared, alone, rtol=0, atol=0)
    assert_close(epochs(module(root)), alone, rtol=0, atol=0)
    data = module(root)
    once, again = (data.splits["train"][3][0] for _ in range(2))
    assert torch.equal(once, again)
    data.splits["train"].set_epoch(1)
    assert not torch.equal(data.splits["train"][3][0], once)
    other = module(root, seed=1)
    other.splits["train"].files = data.splits["train"].files
    assert not torch.equal(other.splits["train"][3][0], once)


def test_an_epoch_that_is_cut_short_does_not_change_the_next(root):
    data = module(root)
    loader = data.train_dataloader()
    next(iter(loader))
    second = torch.cat([images for images, _ in loader])
    assert torch.equal(second, epochs(module(root))[1])


def test_transforms_of_users_are_reproducible_with_any_generator(root):
    data = [module(root, train_transform=Jitter(), num_workers=n) for n in (0, 2)]
    first, second = (epochs(one) for one in data)
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first[0].sort(0).values, first[1].sort(0).values)


class Jitter:
    """Changes by three generators."""

    def __call__(self, image):
        image = image.resize((8, 8))
        amount = random.random() + np.random.rand() + torch.rand(1).item()
        return v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True) + amount


def test_loading_leaves_the_global_generators_alone(root):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    data = module(root, train_transform=Jitter())
    epochs(data)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_result_of_a_transform_is_normalized_unless_floating(root):
    mean, std = ImageFolderDataModule.mean, ImageFolderDataModule.std
    expected = (torch.ones(3) * 51 / 255 - torch.tensor(mean)) / torch.tensor(std)
    gray = {
        "picture": (lambda image: Image.new("RGB", (4, 6), (51, 51, 51)), expected),
        "whole numbers": (lambda image: torch.full((3, 6, 4), 51, dtype=torch.uint8), expected),
        "floating": (lambda image: torch.full((3, 6, 4), 7.0), torch.full((3,), 7.0)),
    }
    for transform, value in gray.values():
        data = module(root, train_transform=transform, eval_transform=transform)
        for split in ("train", "val", "test"):
            image = data.splits[split][0][0]
            assert image.shape == (3, 6, 4)
            assert type(image) is torch.Tensor
            assert_close(image[:, 0, 0], value)


def test_each_transform_replaces_its_own_only(root):
    data = module(root, train_transform=v2.Resize((9, 9)))
    assert [data.splits[split][0][0].shape[1] for split in ("train", "val", "test")] == [9, 16, 16]
    data = module(root, eval_transform=v2.Resize((9, 9)))
    assert [data.splits[split][0][0].shape[1] for split in ("train", "val", "test")] == [16, 9, 9]
    data = module(root, eval_transform=v2.Resize((9, 9)), augment=False)
    assert [data.splits[split][0][0].shape[1] for split in ("train", "val", "test")] == [9, 9, 9]


def test_setup_opens_no_file(root, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", opened)
    data = module(root)
    assert sum(len(data.splits[split]) for split in ("train", "val", "test")) == 25
    with pytest.raises(AssertionError, match="opened"):
        data.splits["train"][0]


@pytest.fixture
def damaged(tmp_path):
    """Ten pictures in one class; 003 and 004 are not readable, in two ways."""
    folders(tmp_path / "train", (10,), ("cat",))
    folders(tmp_path / "val", (2,), ("cat",))
    broken(tmp_path / "train" / "cat" / "003.png")
    (tmp_path / "train" / "cat" / "004.png").write_text("<html>not found</html>")
    return tmp_path


def test_files_that_cannot_be_read_are_replaced_counted_and_named(damaged):
    data = module(damaged, augment=False)
    train, names = data.splits["train"], ["train/cat/003.png", "train/cat/004.png"]
    assert data.unreadable == {"train": [], "val": [], "test": []}
    with pytest.warns(UserWarning, match=r"got 'train/cat/003.png' \(.*; the next one replaces it"):
        replaced = train[3][0]
    assert_close(replaced, train[5][0], rtol=0, atol=0)
    assert_close(train[4][0], train[5][0], rtol=0, atol=0)
    assert len(train) == 10
    assert data.unreadable == {"train": names, "val": [], "test": []}
    with pytest.warns(UserWarning, match=r"got 2 in the train split that cannot: \['train/cat/003.png', 'tr"):
        data.teardown("fit")


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_files_that_a_worker_cannot_read_are_known_here(damaged):
    data = module(damaged, num_workers=2)
    seen = [images for images, _ in data.train_dataloader()]
    assert sum(map(len, seen)) == 10
    assert data.unreadable["train"] == ["train/cat/003.png", "train/cat/004.png"]


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_the_last_file_is_replaced_by_the_first(damaged):
    broken(damaged / "train" / "cat" / "009.png")
    train = module(damaged, augment=False).splits["train"]
    assert_close(train[9][0], train[0][0], rtol=0, atol=0)
    assert_close(train[-1][0], train[0][0], rtol=0, atol=0)
    with pytest.raises(IndexError):
        train[10]


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_a_file_that_cannot_be_read(damaged, workers):
    data = module(damaged, strict=True, num_workers=workers)
    with pytest.raises(ValueError, match=r"got 'train/cat/00[34].png' \(.*; mend or remove it"):
        list(data.train_dataloader())


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_where_no_file_can_be_read_it_is_said(tmp_path):
    for i in range(3):
        broken(tmp_path / "train" / "cat" / f"{i}.png")
        picture(tmp_path / "val" / "cat" / f"{i}.png")
    with pytest.raises(RuntimeError, match="expected a picture that can be read among 3 in a row, got 'train"):
        module(tmp_path).splits["train"][1]


@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
def test_a_file_that_is_gone_is_one_that_cannot_be_read(damaged):
    data = module(damaged)
    (damaged / "train" / "cat" / "000.png").unlink()
    data.splits["train"][0]
    assert data.unreadable["train"] == ["train/cat/000.png"]


def test_splits_can_be_sent_to_processes_that_begin_anew(root):
    data = module(root)
    expected = next(iter(data.val_dataloader()))
    for split in (pickle.loads(pickle.dumps(data.splits["val"])), copy.deepcopy(data.splits["val"])):
        assert_close(next(iter(DataLoader(split, 4))), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_workers_that_begin_anew_see_the_epoch(root):
    data = module(root)
    spawned = module(root, num_workers=1)
    loader = spawned.train_dataloader()
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    results = [torch.cat([images for images, _ in loader]) for _ in range(2)]
    assert_close(results, epochs(data), rtol=0, atol=0)


def test_pictures_of_any_kind_become_color_or_gray(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    kinds = {
        "sixteen.png": Image.fromarray(ramp),
        "gray.png": Image.fromarray((ramp // 257).astype(np.uint8)),
        "palette.png": Image.fromarray((ramp // 257).astype(np.uint8)).convert("P"),
        "alpha.png": Image.fromarray((ramp // 257).astype(np.uint8)).convert("RGBA"),
        "print.tif": Image.fromarray((ramp // 257).astype(np.uint8)).convert("CMYK"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        for mode in ("RGB", "L"):
            results = np.asarray(read_picture(tmp_path / name, mode)).reshape(16, 16, -1)
            assert results.shape[2] == len(mode)
            assert np.abs(results[:, :, 0].astype(int) - ramp // 257).max() <= 1


def test_hidden_files_and_what_is_no_picture_are_passed_over(tmp_path):
    folders(tmp_path / "train", (4, 4))
    noise(tmp_path / "train" / "cat" / "deeper" / "x.JPG.png", 5)
    (tmp_path / "train" / "cat" / "._000.png").write_text("of macOS")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_text("of Windows")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "__MACOSX").mkdir()
    data = module(tmp_path, val_share=0.25, test_share=0.25)
    assert data.class_names == ["bird", "cat"]
    names = sorted(Path(one.file(i)).name for one in data.splits.values() for i in range(len(one)))
    assert names == sorted([f"00{i}.png" for i in range(4)] * 2 + ["x.JPG.png"])


# Boxes stay with the pixels that they are about, through crops and into batches.


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
    results = set()
    for epoch in range(12):
        data.splits["train"].set_epoch(epoch)
        item = data.splits["train"][0]
        if len(item["boxes"]) and (item["boxes"][0, 2:] - item["boxes"][0, :2]).min() > 3:
            box = item["boxes"][0].tolist()
            assert np.abs(np.subtract(box, bright(item["image"], data))).max() <= 1.5
            results.add(tuple(box))
    assert len(results) > 3


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
