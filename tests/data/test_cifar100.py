import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100
from torchvision.transforms import v2

from interpretable_training.data import CIFAR100DataModule

NAMES = [f"thing {i}" for i in range(100)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Twenty training and six test images in the original layout; the first pixel of an image is its number."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    digests = {}
    for name, n in (("train", 20), ("test", 6)):
        data = np.full((n, 3072), 128, dtype=np.uint8)
        data[:, 0] = range(n)
        digests[name] = write(folder / name, {"data": data, "fine_labels": [i % 100 for i in range(n)]})
    digest = write(folder / "meta", {"fine_label_names": NAMES})
    monkeypatch.setattr(CIFAR100, "train_list", [["train", digests["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", digests["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": digest})
    return str(tmp_path)


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def numbers(data, split):
    """The numbers of the images of a split, from their first pixels, in its order."""
    first = [image[0, 0, 0] for image, _ in data.splits[split]]
    return [round(float((x * data.std[0] + data.mean[0]) * 255)) for x in first]


def test_splits_are_the_original_ones(root):
    data = CIFAR100DataModule(root, augment=False)
    data.setup()
    assert {split: numbers(data, split) for split in data.splits} == {
        "train": [*range(20)],
        "val": [*range(6)],
        "test": [*range(6)],
    }
    assert data.class_names == NAMES
    images, target = next(iter(data.test_dataloader()))
    assert (images.shape, target.tolist()) == ((6, 3, 32, 32), [0, 1, 2, 3, 4, 5])
    expected = (torch.tensor(128 / 255) - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(images[0, :, 5, 5], expected)


def test_a_seed_divides_training_and_validation(root):
    results = []
    for seed in (0, 0, 1):
        data = CIFAR100DataModule(root, n_val=5, augment=False, seed=seed)
        data.setup("fit")
        train, val = numbers(data, "train"), numbers(data, "val")
        assert sorted(train + val) == [*range(20)]
        assert len(val) == 5
        assert [target for split in ("train", "val") for _, target in data.splits[split]] == train + val
        results.append(val)
    assert results[0] == results[1] != results[2]


def test_only_training_images_are_augmented(root):
    data = CIFAR100DataModule(root, n_val=5)
    data.setup()
    loaders = data.train_dataloader(), data.val_dataloader()
    epochs = [[torch.cat([images for images, _ in loader]) for _ in range(2)] for loader in loaders]
    first, second = (images.sort(0).values for images in epochs[0])  # whatever their order
    assert not torch.equal(first, second)
    assert torch.equal(*epochs[1])
    plain = CIFAR100DataModule(root, n_val=5, augment=False)
    plain.setup()
    changed = [not torch.equal(data.splits["train"][i][0], plain.splits["train"][i][0]) for i in range(15)]
    assert sum(changed) >= 13
    assert all(torch.equal(data.splits["val"][i][0], plain.splits["val"][i][0]) for i in range(5))


def test_workers_give_the_same_random_changes(root):
    results = []
    for workers in (0, 2):
        data = CIFAR100DataModule(root, num_workers=workers, batch_size=6)
        data.setup("fit")
        loader = data.train_dataloader()
        results.append([torch.cat([images for images, _ in loader]) for _ in range(2)])
    assert all(map(torch.equal, *results))


def test_images_are_enlarged_where_wanted(root):
    data = CIFAR100DataModule(root, image_size=(48, 64), eval_transform=v2.CenterCrop(20))
    data.setup()
    assert [data.splits[split][0][0].shape[1:] for split in ("train", "val")] == [(48, 64), (20, 20)]
    assert CIFAR100DataModule(root, image_size=40).transform("val")(Image.new("RGB", (32, 32))).size == (40, 40)


def test_missing_files_are_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the files .*cifar-100-python, .*download=True"):
        CIFAR100DataModule(str(tmp_path)).setup("fit")


def test_nothing_is_left_for_training(root):
    with pytest.raises(ValueError, match="expected n_val below 20"):
        CIFAR100DataModule(root, n_val=20).setup("fit")
