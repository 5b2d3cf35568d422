import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from interpretable_training.data import ShapesDataModule
from interpretable_training.data.shapes import CHUNK, Shapes

CHANCE = 1 / 6


def draw(split: str = "train", n: int = 48, size: int | tuple[int, int] = 32, **kwargs) -> dict[str, Tensor]:
    """The stored tensors of one annotated split of n images."""
    data = ShapesDataModule(size, **{f"n_{split}": n}, annotations=True, **kwargs)
    data.splits = dict.fromkeys({"train", "val", "test"} - {split})  # not to be drawn
    data.setup()
    assert isinstance(data.splits[split], Shapes)
    return data.splits[split].tensors


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert_close(one[name], two[name], rtol=0, atol=0)


def test_images_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = draw()
    torch.manual_seed(2)
    assert_same(one, draw())
    assert not torch.equal(one["image"], draw(seed=1)["image"])


@pytest.mark.parametrize("n", [1, 5, 47, CHUNK + 3])
def test_the_first_images_do_not_depend_on_how_many_follow(n):
    many = draw(n=CHUNK + 20, shortcut=0.5, seed=3)
    assert_same(draw(n=n, shortcut=0.5, seed=3, batch_size=7), {name: many[name][:n] for name in many})


def test_no_image_occurs_twice_in_or_between_splits():
    images = [draw(split, n=2 * CHUNK)["image"].flatten(1) for split in ("train", "val", "test")]
    images.append(draw("train", n=2 * CHUNK, seed=1)["image"].flatten(1))
    images = torch.cat(images).float()
    # Far more than noise apart: a scene drawn twice with other noise would be at some 5.
    distance = torch.cdist(images, images).fill_diagonal_(torch.inf) / images.shape[1] ** 0.5
    assert distance.min() > 10


@pytest.mark.parametrize("n", [6, 100, CHUNK + 50])
def test_classes_are_balanced_and_in_no_fixed_order(n):
    target = draw(n=n, size=16)["target"]
    count = target.bincount(minlength=6)
    assert count.max() - count.min() <= 1
    if n > 6:
        assert len({tuple(block.tolist()) for block in target[:96].split(6)}) > 8


def test_items_are_normalized_pairs():
    data = ShapesDataModule(16, n_train=300)
    data.setup("fit")
    image, target = data.splits["train"][0]
    raw = data.splits["train"].tensors["image"][0]
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    assert_close(image * std + mean, raw / 255)
    assert image.dtype == torch.float32
    assert type(target) is int
    images = torch.stack([image for image, _ in data.splits["train"]])
    assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=0.15)
    assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=0.15)
    assert "mask" not in data.splits["train"].tensors  # kept only where asked for


@pytest.mark.parametrize(
    ("size", "channels", "shape"),
    [(16, 3, (3, 16, 16)), ((20, 48), 1, (1, 20, 48)), ((50, 17), 3, (3, 50, 17)), (224, 1, (1, 224, 224))],
)
def test_annotated_batches_of_any_size(size, channels, shape):
    data = ShapesDataModule(size, channels, 4, 4, 4, batch_size=4, annotations=True, shortcut=0.5)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    height, width = shape[1:]
    assert set(batch) == {"image", "target", "mask", "boxes", "shortcut_mask", "cue", "group"}
    assert batch["image"].shape == (4, *shape)
    assert batch["image"].dtype == torch.float32
    assert batch["target"].shape == (4,)
    assert batch["target"].dtype == torch.int64
    assert batch["mask"].shape == batch["shortcut_mask"].shape == (4, height, width)
    assert batch["mask"].dtype == batch["shortcut_mask"].dtype == torch.bool
    assert batch["boxes"].shape == (4, 1, 4)
    assert batch["boxes"].dtype == torch.float32
    assert len(data.mean) == len(data.std) == channels


def test_gray_is_the_luma_of_the_color_picture():
    gray, color = draw(channels=1, shortcut=0.5), draw(shortcut=0.5)
    red, green, blue = color["image"].float().unbind(1)
    assert_close(gray["image"][:, 0].float(), (0.299 * red + 0.587 * green + 0.114 * blue), rtol=0, atol=0.51)
    assert_same({**gray, "image": color["image"]}, color)


@pytest.mark.parametrize("size", [16, 32, (24, 61)])
def test_boxes_are_tight_around_masks_that_touch_no_border(size):
    drawn = draw(n=96, size=size)
    height, width = drawn["mask"].shape[1:]
    for mask, box in zip(drawn["mask"], drawn["boxes"][:, 0].long().tolist()):
        y, x = mask.nonzero().T.tolist()
        assert box == [min(x), min(y), max(x) + 1, max(y) + 1]
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= width
        assert box[3] <= height


def test_the_mask_is_the_object_whole_and_in_front():
    """Inside, one color and noise; just outside, something else, also in gray."""
    drawn = draw(n=96, size=64)
    luma = torch.einsum("nchw,c->nhw", drawn["image"] / 255, torch.tensor([0.299, 0.587, 0.114]))
    mask = drawn["mask"][:, None].float()
    inside = 1 - F.max_pool2d(1 - mask, 3, 1, 1)[:, 0]  # without the edge, whose pixels are mixed
    around = F.max_pool2d(mask, 9, 1, 4)[:, 0] - F.max_pool2d(mask, 3, 1, 1)[:, 0]
    for picture, within, beyond in zip(luma, inside.bool(), around.bool()):
        assert picture[within].std() < 0.02
        assert (picture[within].mean() - picture[beyond].mean()).abs() > 0.1


def probe(features: Tensor, target: Tensor) -> float:
    """Accuracy of the 15 nearest neighbors on the last third of the images."""
    features = (features - features.mean(0)) / features.std(0)
    n = len(target) * 2 // 3
    near = torch.cdist(features[n:], features[:n]).topk(15, largest=False).indices
    votes = F.one_hot(target[:n][near], 6).sum(1)
    return (votes.argmax(1) == target[n:]).float().mean().item()


def test_neither_colors_nor_place_nor_area_tell_the_class():
    drawn = draw(n=3000)
    images, mask, boxes = drawn["image"] / 255, drawn["mask"], drawn["boxes"][:, 0]
    target, area = drawn["target"], drawn["mask"].sum((1, 2))[:, None].float()
    inside = (images * mask[:, None]).sum((2, 3)) / area
    assert probe(images.mean((2, 3)), target) < CHANCE + 0.06
    assert probe(inside, target) < CHANCE + 0.06
    assert probe((boxes[:, :2] + boxes[:, 2:]) / 2, target) < CHANCE + 0.06
    assert probe(area, target) < CHANCE + 0.06
    # The probe itself can tell: the share of its box that a shape fills does depend on the class.
    extent = boxes[:, 2:] - boxes[:, :2]
    assert probe(area / extent.prod(1, keepdim=True), target) > CHANCE + 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 8}, "expected image_size >= 16, got 8; pass"),
        ({"image_size": (64, 12)}, "expected image_size >= 16, got 12; pass"),
        ({"channels": 2}, r"expected channels 1 \(gray\) or 3 \(color\), got 2; pass"),
        ({"n_train": 0}, "expected n_train >= 1, got 0; pass"),
        ({"n_val": -1}, "expected n_val >= 1, got -1; pass"),
        ({"n_test": 0}, "expected n_test >= 1, got 0; pass"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0; pass"),
        ({"shortcut": 1.5}, "expected shortcut as a share of images between 0 and 1, got 1.5; pass"),
        ({"shortcut": -0.1}, "expected shortcut as a share of images between 0 and 1, got -0.1; pass"),
        ({"shortcut_val": "wrong"}, "expected shortcut_val 'same', 'none' or 'swapped', got 'wrong'; pass"),
    ],
)
def test_wrong_arguments_are_refused_with_advice(wrong, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataModule(**wrong)


def test_facts_about_the_classes():
    data = ShapesDataModule()
    assert data.class_names == ["circle", "square", "triangle", "star", "cross", "ring"]
    assert data.num_classes == 6
    assert data.multilabel is False
