"""The choice of the images that are explained."""

import pytest
import torch
from PIL import Image
from support.watched import Keyed, Memory, context_of, failures, fit, loader, pictures, record
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torchvision import datasets

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger
from interpretable_training.callbacks.watching.image_panel import balanced, known_labels


def panel_of(tmp_path, images="panel", val=None, n=6, **options):
    watcher = ExplanationDrift(images=images, max_images=n, on_error="raise", **options)
    trainer = fit(tmp_path, [watcher], val=val or loader(30, 1), max_epochs=1)
    return context_of(trainer, watcher).panel


def test_panel_is_balanced_and_the_same_in_each_run(tmp_path):
    labels = torch.tensor([0] * 20 + [1] * 7 + [2] * 3)
    data = TensorDataset(pictures(30, 1).tensors[0], labels)
    panels = [
        panel_of(tmp_path / str(i), val=DataLoader(data, **options))
        for i, options in enumerate(
            [{"batch_size": 4}, {"batch_size": 7, "num_workers": 2}, {"batch_size": 1, "shuffle": True}]
        )
    ]
    assert panels[0].ids == panels[1].ids == panels[2].ids
    assert sorted(labels[panels[0].ids].tolist()) == [0, 0, 1, 1, 2, 2]
    assert {*labels[panels[0].ids[:3]].tolist()} == {0, 1, 2}  # also when a budget leaves half of them
    images = [torch.cat([batch[0] for batch in panel.batches]) for panel in panels]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], data.tensors[0][panels[0].ids])
    assert panel_of(tmp_path / "seed", val=DataLoader(data, batch_size=4), seed=1).ids != panels[0].ids


def test_classes_take_turns():
    labels = {0: 5, 1: 5, 2: 5, 3: 6, 4: 7}
    assert balanced([2, 3, 1, 0, 4], labels, 4) == [2, 3, 4, 1]
    assert balanced([2, 3, 1, 0, 4], None, 2) == [2, 3]


def test_labels_of_data_sets_are_known_without_reading(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    folder = datasets.ImageFolder(tmp_path)
    assert known_labels(folder) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert known_labels(Subset(folder, [3, 0])) == {0: 1, 1: 0}
    assert known_labels(Keyed(pictures(4))) is None


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(image, label) for image, label in zip(*pictures(9, 5).tensors)])


def test_images_of_ones_own(tmp_path):
    assert panel_of(tmp_path / "a", images=[5, 3, 29]).ids == [5, 3, 29]
    many = list(range(20))
    assert panel_of(tmp_path / "b", images=many).ids == many  # all of them, whatever max_images
    own = pictures(9, 5)
    for i, images in enumerate([own, DataLoader(own, batch_size=2), DataLoader(Stream(), batch_size=2)]):
        panel = panel_of(tmp_path / f"own{i}", images=images)
        assert sum(len(batch[0]) for batch in panel.batches) == 6
        assert torch.equal(panel.batches[0][0], own.tensors[0][panel.ids[: len(panel.batches[0][0])]])
    panel = panel_of(tmp_path / "f", images=lambda trainer: own[:5])
    assert torch.equal(panel.batches[0][0], own.tensors[0][:5])
    with pytest.raises(ValueError, match=r"expected images as indices below 30, the size of the data set, got \[30\]"):
        panel_of(tmp_path / "w", images=[1, 30])


def test_given_images_are_not_named_as_hardest_images(tmp_path):
    own = TensorDataset(torch.zeros(3, 3, 16, 16), torch.zeros(3).long())
    fit(tmp_path, [ExplanationLogger(images=own, hardest=9, on_error="raise")], max_epochs=1)
    files = {line["id"]: line["file"] for line in record(tmp_path).of("image")}
    assert len(files) == 3 + 9
    for line in record(tmp_path).of("maps"):
        for row in line["rows"]:
            black = not any(Image.open(files[row["id"]]).convert("L").getdata())
            assert black == (line["group"] == "panel")


def test_hardest_images_of_a_shuffled_loader_have_no_index(tmp_path):
    logger = Memory()
    watching = ExplanationLogger(max_images=3, hardest=2, on_error="raise")
    fit(tmp_path, [watching], val=loader(9, shuffle=True), max_epochs=2, logger=logger)
    lines = [line for line in record(tmp_path).of("maps") if line["group"] == "hardest"]
    assert all(int(row["id"]) < 0 for line in lines for row in line["rows"])
    captions = [caption for _, caption in logger.pictures[-1][2]["xai/hardest/gradcam"]]
    assert all(caption.startswith("predicted") for caption in captions)
    assert failures(tmp_path) == []
