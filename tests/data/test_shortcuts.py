import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from interpretable_training.data import ShapesDataModule
from interpretable_training.data.shortcuts import PATTERNS, draw_marks, side_of_mark


def draw(split: str = "train", n: int = 120, size: int | tuple[int, int] = 32, **kwargs) -> dict[str, Tensor]:
    data = ShapesDataModule(size, **{f"n_{split}": n}, annotations=True, **kwargs)
    data.splits = dict.fromkeys({"train", "val", "test"} - {split})  # not to be drawn
    data.setup()
    return data.splits[split].tensors


def read_marks(drawn: dict[str, Tensor], size: int) -> Tensor:
    """Class that the mark in each picture names (N,), found by its pixels; -1: no mark, -2: unknown."""
    marks, m = draw_marks((size, size)), side_of_mark((size, size))
    results = torch.full((len(drawn["image"]),), -1)
    for i in drawn["shortcut_mask"].any(2).any(1).nonzero()[:, 0]:
        y, x = drawn["shortcut_mask"][i].nonzero()[0].tolist()
        same = (marks == drawn["image"][i, :, y : y + m, x : x + m]).flatten(1).all(1)
        results[i] = same.nonzero().item() if same.sum() == 1 else -2
    return results


@pytest.mark.parametrize(("side", "mark"), [(16, 5), (32, 5), (64, 8), (128, 17), (224, 28)])
def test_marks_take_an_eighth_of_the_image_or_five_pixels(side, mark):
    assert abs(side_of_mark((side, 2 * side)) - mark) <= 1
    assert side_of_mark((side, 2 * side)) == side_of_mark((2 * side, side)) >= 5


def test_marks_of_two_classes_differ_in_color_and_in_gray():
    cells = PATTERNS.flatten(1)
    differences = (cells[:, None] != cells).sum(2)
    assert (differences + 9 * torch.eye(6) >= 4).all()
    luma = torch.einsum("nchw,c->nhw", draw_marks((32, 32)).float(), torch.tensor([0.299, 0.587, 0.114]))
    inner = luma[:, 1:-1, 1:-1]
    assert luma[:, 0].max() == 0
    assert inner[PATTERNS].max() < 130  # dark cells
    assert inner[~PATTERNS].min() > 250  # white cells


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_training_images_gets_the_mark_of_its_class(share):
    drawn = draw(n=1500, size=16, shortcut=share)
    if share == 0:
        assert "shortcut_mask" not in drawn
        return
    results = read_marks(drawn, 16)
    marked = results != -1
    assert marked.float().mean().item() == pytest.approx(share, abs=0.04)  # over three standard deviations
    assert (results[marked] == drawn["target"][marked]).all()


@pytest.mark.parametrize("split", ["val", "test"])
def test_marks_of_the_evaluation_splits(split):
    same, none, swapped = (
        draw(split, n=300, shortcut=0.6, shortcut_val=value) for value in ("same", "none", "swapped")
    )
    right, results = read_marks(same, 32), read_marks(swapped, 32)
    marked = right != -1
    assert marked.float().mean().item() == pytest.approx(0.6, abs=0.1)
    assert (right[marked] == same["target"][marked]).all()
    assert not none["shortcut_mask"].any()
    assert ((results >= 0) == marked).all()
    assert (results != swapped["target"]).all()
    # every wrong class is drawn, not one fixed neighbor
    assert len(((results - swapped["target"]) % 6)[marked].unique()) == 5


def test_swapping_spares_the_training_images():
    assert_close(draw(shortcut=0.5, shortcut_val="swapped"), draw(shortcut=0.5), rtol=0, atol=0)


def test_only_the_pixels_of_marks_differ_from_clean_images():
    clean = draw()
    some, more = draw(shortcut=0.3), draw(shortcut=0.7)
    for drawn in (some, more):
        changed = (drawn["image"] != clean["image"]).any(1)
        assert not (changed & ~drawn["shortcut_mask"]).any()
        assert (changed.sum((1, 2)) > 0.5 * drawn["shortcut_mask"].sum((1, 2)) - 1e-6).all()
        assert torch.equal(drawn["mask"], clean["mask"])
        assert torch.equal(drawn["target"], clean["target"])
    # a larger share adds marks and moves none
    kept = some["shortcut_mask"].any(2).any(1)
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(some["image"][kept], more["image"][kept])


@pytest.mark.parametrize("size", [16, 17, 21, 32, (16, 80), (80, 16), 64])
def test_marks_never_touch_the_box_of_the_object(size):
    drawn = draw(n=500, size=size, shortcut=1.0)
    assert drawn["shortcut_mask"].any(2).any(1).all()
    m = side_of_mark(size if isinstance(size, tuple) else (size, size))
    assert (drawn["shortcut_mask"].sum((1, 2)) == m * m).all()
    beside = F.max_pool2d(drawn["shortcut_mask"][:, None].float(), 3, 1, 1)[:, 0].bool()
    for i, (x1, y1, x2, y2) in enumerate(drawn["boxes"][:, 0].long().tolist()):
        assert not beside[i, y1:y2, x1:x2].any()


def test_marks_lie_everywhere():
    """Neither in one corner nor, by their place, naming the class."""
    drawn = draw(n=1200, shortcut=1.0)
    assert drawn["shortcut_mask"].any(0).all()
    for split in range(6):
        where = drawn["shortcut_mask"][drawn["target"] == split].float().mean(0)
        assert where[:16].sum() / where.sum() == pytest.approx(0.5, abs=0.12)
        assert where[:, :16].sum() / where.sum() == pytest.approx(0.5, abs=0.12)


def tiny_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if outputs < 64 else [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 6)]
    return nn.Sequential(*layers)


def train(shortcut: float, epochs: int = 6) -> nn.Module:
    data = ShapesDataModule(32, n_train=2400, n_val=1, shortcut=shortcut)
    data.setup("fit")
    loader = data.train_dataloader()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny_network()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, target in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), target).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, shortcut_val: str) -> float:
    data = ShapesDataModule(32, n_val=600, batch_size=600, shortcut=1.0, shortcut_val=shortcut_val)
    data.setup("validate")
    images, target = next(iter(data.val_dataloader()))
    return (network(images).argmax(1) == target).float().mean().item()


@pytest.mark.slow
def test_network_trained_with_marks_reads_them_another_does_not():
    hans = train(shortcut=1.0)
    assert accuracy(hans, "same") > 0.9
    assert accuracy(hans, "none") < 0.4
    assert accuracy(hans, "swapped") < 0.2
    honest = train(shortcut=0.0)
    clean = accuracy(honest, "none")
    assert clean > 0.85
    assert accuracy(honest, "same") > clean - 0.08
    assert accuracy(honest, "swapped") > clean - 0.08
