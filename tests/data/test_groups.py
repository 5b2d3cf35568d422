"""Data with a planted cue: its kind and the group of each image, alike in all data modules."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interpretable_training.data import CUBDataModule, DigitsDataModule, ShapesDataModule

KINDS = {
    "marks": lambda **options: ShapesDataModule(16, n_train=900, n_val=600, n_test=6, **options),
    "backgrounds": lambda **options: ShapesDataModule(
        16, n_train=900, n_val=600, n_test=6, cue="background", **options
    ),
    "digits": lambda **options: DigitsDataModule(16, **options),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tensors(kind: str, split: str = "train", **options) -> dict[str, Tensor]:
    data = KINDS[kind](annotations=True, **options)
    data.splits = dict.fromkeys({"train", "val", "test"} - {split})  # not to be made
    data.setup()
    return data.splits[split].tensors


@every_kind
def test_groups_are_classes_times_cues(kind):
    data = KINDS[kind](annotations=True, shortcut=0.5)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["cue"].shape == batch["group"].shape == batch["target"].shape
    for target, cue, group in zip(batch["target"], batch["cue"], batch["group"]):
        assert data.group_names[group] == f"{data.class_names[target]}, {data.cue_names[cue]}"
    assert len(data.group_names) == data.num_classes * len(data.cue_names)
    assert (data.cue_names[-1] == "none") == (kind != "backgrounds")
    assert not (batch["mask"] & batch["shortcut_mask"]).any()


def test_data_without_cues_have_no_groups():
    data = CUBDataModule()
    assert data.cue_names == data.group_names == []


@every_kind
def test_the_cue_names_the_class_in_the_share_of_training_images(kind):
    drawn = tensors(kind, shortcut=0.6)
    by_chance = 0.4 / 6 if kind == "backgrounds" else 0.0
    right = drawn["cue"] == drawn["target"]
    assert right.float().mean().item() == pytest.approx(0.6 + by_chance, abs=0.06)
    none = drawn["cue"] == len(drawn["target"].unique())
    assert none.sum() == (0 if kind == "backgrounds" else (~right).sum())


@every_kind
def test_cues_of_the_validation_images(kind):
    same, none, swapped = (
        tensors(kind, "val", shortcut=0.7, shortcut_val=value) for value in ("same", "none", "swapped")
    )
    classes = len(same["target"].unique())
    right, wrong = same["cue"] == same["target"], (swapped["cue"] != swapped["target"]) & (swapped["cue"] < classes)
    if kind == "backgrounds":
        tally = torch.zeros(6, 6).index_put_((none["target"], none["cue"]), torch.ones(600), accumulate=True)
        assert_close(
            tally, torch.full((6, 6), 600 / 36), rtol=0, atol=4 * (600 / 36) ** 0.5
        )  # independent of the class
        assert right.float().mean().item() == pytest.approx(0.7 + 0.3 / 6, abs=0.08)
        assert wrong.float().mean().item() == pytest.approx(0.7 + 0.3 * 5 / 6, abs=0.08)
    else:
        assert (none["cue"] == classes).all()
        assert not none["shortcut_mask"].any()
        assert torch.equal(right, wrong)
        assert torch.equal(same["cue"] < classes, same["shortcut_mask"].flatten(1).any(1))
    assert len(((swapped["cue"] - swapped["target"]) % classes)[wrong].unique()) == classes - 1
    assert torch.equal(same["target"], swapped["target"])


@every_kind
def test_swapping_cues_leaves_the_training_images(kind):
    assert_close(tensors(kind, shortcut=0.5, shortcut_val="swapped"), tensors(kind, shortcut=0.5), equal_nan=True)


@every_kind
def test_annotations_are_given_for_a_share_of_the_training_images(kind):
    every, some, more = (tensors(kind, shortcut=0.5, annotated=share) for share in (1.0, 0.1, 0.3))
    assert every["mask"].flatten(1).any(1).all()
    for drawn, share in ((some, 0.1), (more, 0.3)):
        there = drawn["mask"].flatten(1).any(1)
        assert there.float().mean().item() == pytest.approx(share, abs=0.04)
        assert torch.equal(there, ~drawn["boxes"].isnan().flatten(1).any(1))
        assert torch.equal(drawn["mask"][there], every["mask"][there])
        for name in ("image", "target", "cue", "group", "shortcut_mask"):
            assert torch.equal(drawn[name], every[name])
    assert not (some["mask"].any((1, 2)) & ~more["mask"].any((1, 2))).any()
    assert tensors(kind, "val", shortcut=0.5, annotated=0.0)["mask"].flatten(1).any(1).all()


@every_kind
def test_annotated_images_can_be_repeated(kind):
    options = {"shortcut": 0.5, "annotated": 0.1}
    once, thrice = tensors(kind, **options), tensors(kind, repeat_annotated=3, **options)
    known = once["mask"].flatten(1).any(1)
    n = len(known)
    assert len(thrice["target"]) == n + 2 * known.sum()
    for name, values in once.items():
        assert_close(thrice[name], torch.cat([values, values[known], values[known]]), rtol=0, atol=0, equal_nan=True)
    assert_close(tensors(kind, "val", repeat_annotated=3, **options), tensors(kind, "val", **options))
    with pytest.raises(ValueError, match="expected annotations=True with repeat_annotated=3, got annotations=False"):
        KINDS[kind](repeat_annotated=3)
    with pytest.raises(ValueError, match="expected repeat_annotated >= 1, got 0; pass"):
        KINDS[kind](repeat_annotated=0)


def test_backgrounds_change_neither_object_nor_place():
    plain, textured = (tensors(kind) for kind in ("marks", "backgrounds"))
    for name in ("target", "mask", "boxes"):
        assert torch.equal(plain[name], textured[name])
    assert torch.equal(textured["shortcut_mask"], ~textured["mask"])
    changed = (plain["image"] != textured["image"]).any(1)
    assert changed[textured["shortcut_mask"]].float().mean() > 0.8


def test_textured_images_depend_on_seed_and_number_alone():
    options = {"n_val": 6, "n_test": 6, "annotations": True, "shortcut": 0.5, "cue": "background"}
    many = ShapesDataModule(128, n_train=70, seed=3, **options).generate("train").tensors
    few = ShapesDataModule(128, n_train=66, seed=3, batch_size=7, **options).generate("train").tensors
    assert_close(few, {name: values[:66] for name, values in many.items()})


def test_gray_levels_of_patches_are_those_of_the_paper():
    plain, drawn = tensors("digits", margin=0.125), tensors("digits", margin=0.125, shortcut=1.0)
    levels = [1, 230 / 255, 205 / 255, 180 / 255, 155 / 255, 130 / 255, 105 / 255, 80 / 255, 55 / 255, 30 / 255]
    expected = torch.tensor(levels)[drawn["target"]]
    patches = drawn["shortcut_mask"]
    pixels = drawn["image"][:, 0] * 0.324 + 0.305
    assert (patches.sum((1, 2)) == 16).all()  # a quarter of 16 pixels, squared
    assert_close((pixels * patches).sum((1, 2)) / 16, expected)
    same = drawn["image"][:, 0] == plain["image"][:, 0]
    assert same[~patches].all()
    corners = patches[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.sum(1) == 1).all()
    assert (corners.float().mean(0) > 0.2).all()
    hidden = (plain["mask"] & ~drawn["mask"]).sum((1, 2)) / plain["mask"].sum((1, 2))
    assert hidden.mean() < 0.02  # corners are nearly free of ink
    assert not (drawn["mask"] & ~plain["mask"]).any()


@every_kind
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"annotated": 1.5}, "expected annotated as a share of images between 0 and 1, got 1.5; pass"),
        ({"shortcut": -1.0}, "expected shortcut as a share of images between 0 and 1, got -1.0; pass"),
        ({"shortcut_val": "wrong"}, "expected shortcut_val 'same', 'none' or 'swapped', got 'wrong'; pass"),
    ],
)
def test_wrong_shares_are_refused_with_advice(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**wrong)


def test_a_margin_shrinks_digits_and_leaves_the_border_empty():
    whole, framed = DigitsDataModule(12), DigitsDataModule(16, margin=0.125)
    for data in (whole, framed):
        data.setup("test")
    one, two = (data.splits["test"].tensors[0] for data in (whole, framed))
    assert torch.equal(two[:, :, 2:-2, 2:-2], one)
    border = torch.ones(16, 16, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert_close(two[:, 0, border], torch.full((270, 112), -0.305 / 0.324))
    with pytest.raises(ValueError, match=r"expected margin as a share of the side .* 0.25, got 0.5; pass"):
        DigitsDataModule(margin=0.5)


def test_unknown_cues_are_refused_with_advice():
    with pytest.raises(ValueError, match="expected cue 'mark' or 'background', got 'color'; pass one"):
        ShapesDataModule(cue="color")
