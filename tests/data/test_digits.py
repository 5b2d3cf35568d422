import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from interpretable_training.data import DigitsDataModule


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup()
    return data


def tensors(data: DigitsDataModule, split: str):
    return data.splits[split].tensors


def test_each_image_is_in_one_split_and_none_is_lost(digits):
    sizes = [len(digits.splits[split]) for split in ("train", "val", "test")]
    assert sum(sizes) == 1797
    assert [size / 1797 for size in sizes] == pytest.approx([0.7, 0.15, 0.15], abs=0.001)
    images = torch.cat([tensors(digits, split)[0] for split in ("train", "val", "test")])
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no two digits of the set are alike


def test_every_split_has_the_same_share_of_every_digit(digits):
    everything = torch.tensor(load_digits().target).bincount() / 1797
    for split in ("train", "val", "test"):
        target = tensors(digits, split)[1]
        assert_close(target.bincount() / len(target), everything, rtol=0, atol=0.005)


def test_splits_follow_the_seed_and_do_not_depend_on_the_stage(digits):
    again, other = DigitsDataModule(), DigitsDataModule(seed=1)
    again.setup("validate")
    other.setup("validate")
    assert set(again.splits) == {"val"}
    assert torch.equal(tensors(again, "val")[0], tensors(digits, "val")[0])
    assert not torch.equal(tensors(other, "val")[0], tensors(digits, "val")[0])
    kept = again.splits["val"]
    again.setup()
    assert again.splits["val"] is kept
    assert torch.equal(tensors(again, "train")[0], tensors(digits, "train")[0])


def test_batches_are_normalized_and_resized(digits):
    images, target = next(iter(digits.train_dataloader()))
    assert images.shape == (64, 1, 32, 32)
    assert target.dtype == torch.int64
    everything = tensors(digits, "train")[0]
    assert everything.mean().item() == pytest.approx(0, abs=0.02)
    assert everything.std().item() == pytest.approx(1, abs=0.02)


def test_images_and_targets_belong_together():
    data = DigitsDataModule(image_size=8)  # the size they have: nothing is interpolated
    data.setup("test")
    source = load_digits()
    known = {
        tuple(image.flatten().astype(int).tolist()): int(label) for image, label in zip(source.images, source.target)
    }
    images, target = tensors(data, "test")
    pixels = ((images * data.std[0] + data.mean[0]) * 16).round().int().flatten(1).tolist()
    assert [known[tuple(row)] for row in pixels] == target.tolist()


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "interpretable-training\[data\]"'):
        DigitsDataModule().setup()


def test_facts_and_wrong_arguments():
    data = DigitsDataModule()
    assert data.class_names == list("0123456789")
    assert data.num_classes == 10
    assert data.multilabel is False
    with pytest.raises(ValueError, match="expected image_size >= 8, got 4; pass"):
        DigitsDataModule(image_size=4)
