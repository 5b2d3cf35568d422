"""Accuracy with parts of the image replaced: worked out by hand for models that read one pixel."""

import pytest
import torch
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import RandomMap
from interpretable_training.data import ShapesDataModule
from interpretable_training.metrics import (
    BackgroundAccuracy,
    ObjectAccuracy,
    OtherBackgroundAccuracy,
    PlainAccuracy,
    TopReplacedAccuracy,
    evaluate,
)
from interpretable_training.metrics.behavior import donors
from interpretable_training.metrics.core.rescoring import scored_batch

OBJECT, BACKGROUND = (0, 0), (3, 3)  # the pixels that models read
TARGET = torch.tensor([0, 1, 1, 0])
BEHIND = torch.tensor([0.0, 1, 1, 1])  # the background names the class, but for the last image
MASK = torch.zeros(4, 4, 4, dtype=torch.bool)
MASK[:, :2, :2] = True
TESTS = {
    "plain": PlainAccuracy(),
    "object": ObjectAccuracy(substrate="mean"),
    "background": BackgroundAccuracy(substrate="mean"),
    "other": OtherBackgroundAccuracy(substrate="mean"),
}


class Reader(nn.Module):
    """Predicts class 1 where one pixel is above a half, and keeps the images it received."""

    def __init__(self, pixel):
        super().__init__()
        self.pixel, self.received = pixel, Tally()

    def forward(self, x):
        self.received.append(x.clone())
        y = x[:, 0, self.pixel[0], self.pixel[1]] - 0.5
        return torch.stack([-y, y], 1)


@pytest.fixture
def images():
    x = BEHIND[:, None, None, None].repeat(1, 1, 4, 4)
    x[:, 0][MASK] = TARGET.repeat_interleave(4).float()
    return x


def measured(metric, **facts):
    given = {key: value for key, value in facts.items() if key in metric._update_signature.parameters}
    return metric.measure(**given).tolist()


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        # The object is the class; what is filled in is 0, hence class 0.
        (OBJECT, {"plain": [100] * 4, "object": [100] * 4, "background": [100, 0, 0, 100], "other": [100] * 4}),
        # The donors of images 0 to 3 are 1, 3, 3 and 1, whose backgrounds are all 1.
        (
            BACKGROUND,
            {
                "plain": [100, 100, 100, 0],
                "object": [100, 0, 0, 100],
                "background": [100, 100, 100, 0],
                "other": [0, 100, 100, 0],
            },
        ),
    ],
    ids=["reads the object", "reads the background"],
)
def test_accuracies_of_models_that_read_one_pixel(images, pixel, expected):
    results = {
        name: measured(t, model=Reader(pixel), images=images, target=TARGET, mask=MASK) for name, t in TESTS.items()
    }
    assert results == expected


def test_the_replaced_box_hides_the_outline_of_the_object(images):
    """The mask is a diagonal; the whole box around it is filled, from a background that is constant."""
    model, mask = Reader(OBJECT), torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, 0, 0] = mask[:, 1, 1] = True
    for region, filled in (("auto", True), ("mask", False)):
        BackgroundAccuracy(region).measure(model=model, images=images, target=TARGET, mask=mask)
        received = model.received[-1]
        assert torch.equal(received[:, 0, 3], images[:, 0, 3])
        assert torch.allclose(received, BEHIND[:, None, None, None].expand_as(received), atol=1e-5) == filled


def test_boxes_tell_the_object_where_there_is_no_mask(images):
    boxes = torch.tensor([[[0.0, 0, 2, 2], [torch.nan] * 4]]).expand(4, 2, 4)
    for name, metric in TESTS.items():
        given = {"model": Reader(BACKGROUND), "images": images, "target": TARGET}
        assert measured(metric, **given, boxes=boxes) == measured(metric, **given, mask=MASK), name


def test_another_background_comes_with_its_object_filled_in(images):
    """Object of image i, and around it the constant background of image j."""
    model, mask = Reader(OBJECT), MASK.clone()
    mask[1], mask[3] = MASK[1].flip(0, 1), MASK[3].flip(0, 1)  # their objects are in the other corner
    x = images.clone()
    x[1], x[3] = x[1].flip(1, 2), x[3].flip(1, 2)
    OtherBackgroundAccuracy().measure(model=model, images=x, target=TARGET, mask=mask)
    expected = torch.ones_like(x)  # background of 1 and 3
    expected[mask[:, None]] = x[mask[:, None]]
    assert_close(model.received[-1], expected, rtol=0, atol=1e-5)


def test_donors_are_the_next_usable_images_of_another_class():
    classes, usable = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([True, True, False, True, True])
    j, results = donors(classes, usable)
    assert j.tolist() == [3, 3, 4, 4, 0]
    assert results.all()
    assert not donors(torch.zeros(3), torch.ones(3, dtype=torch.bool))[1].any()


@pytest.mark.filterwarnings("ignore:.*leaves out")
def test_images_without_a_donor_or_a_region_are_left_out(images):
    same = torch.zeros(4, dtype=torch.long)
    given = {"model": Reader(OBJECT), "images": images, "mask": MASK}
    assert OtherBackgroundAccuracy().measure(**given, target=same).isnan().all()
    none, all_of = MASK.clone(), MASK.clone()
    none[0], all_of[1] = False, True
    for metric in (ObjectAccuracy(), BackgroundAccuracy(), OtherBackgroundAccuracy()):
        for mask, i in ((none, 0), (all_of, 1)):
            left_out = metric.measure(**{**given, "mask": mask}, target=TARGET).isnan().tolist()
            assert left_out == [j == i for j in range(4)]
    metric = OtherBackgroundAccuracy()
    metric.update(**given, target=same)
    with pytest.warns(UserWarning, match="leaves out 4 of 4 images, which have no image of another class"):
        metric.compute()


def test_a_cue_takes_the_place_of_the_object(images):
    """The cue alone decides in a model that reads it; directions turn around."""
    cue = MASK.flip(1, 2)
    given = {"model": Reader(BACKGROUND), "images": images, "target": TARGET, "shortcut_mask": cue}
    assert ObjectAccuracy("shortcut_mask", "mean").measure(**given).tolist() == [100, 100, 100, 0]
    assert BackgroundAccuracy("shortcut_mask", "mean").measure(**given).tolist() == [100, 0, 0, 100]
    directions = [kind("shortcut_mask").passport()["direction"] for kind in (ObjectAccuracy, BackgroundAccuracy)]
    assert directions == ["lower is better", "higher is better"]


@pytest.mark.parametrize(("pixel", "accuracy"), [(OBJECT, 0.0), (BACKGROUND, 100.0)])
def test_top_replaced_hits_models_that_read_what_the_map_shows(pixel, accuracy):
    """Image of class 1: the object is 1 on a background of 0, which replaces it; the other pixel is 1, too."""
    x, S = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4)
    x[..., 0, 0], x[..., 3, 3], S[0, 0, 0] = 1, 1, 1
    facts = {"model": Reader(pixel), "images": x, "saliency": S, "target": torch.tensor([1])}
    assert TopReplacedAccuracy(100 / 16).measure(**facts).tolist() == [accuracy]


def test_top_replaced_refuses_no_pixel_and_all_of_them():
    facts = {"model": Reader(OBJECT), "images": torch.rand(1, 1, 4, 4), "saliency": torch.rand(1, 4, 4), "target": 0}
    for topk, count in ((1, 0), (100, 16)):
        with pytest.raises(ValueError, match=f"expected topk of which some of the 16 pixels .* {count} pixels"):
            TopReplacedAccuracy(topk).update(**facts)
    with pytest.raises(ValueError, match="expected topk as a number"):
        TopReplacedAccuracy(0)


@pytest.mark.parametrize("metric", [*TESTS.values(), TopReplacedAccuracy()], ids=lambda m: type(m).__name__)
def test_an_accuracy_needs_classes(images, metric):
    given = {"model": Reader(OBJECT), "images": images, "target": lambda y: y[:, 0], "mask": MASK}
    with pytest.raises(TypeError, match=r"expected target as classes .* got a function; pass the labels"):
        measured(metric, **given, saliency=torch.rand(4, 4, 4))


@pytest.mark.parametrize("kind", [ObjectAccuracy, BackgroundAccuracy, OtherBackgroundAccuracy])
def test_a_batch_without_regions_is_refused_by_name(images, kind):
    given = {"model": Reader(OBJECT), "images": images, "target": TARGET}
    with pytest.raises(ValueError, match=f"expected .*'mask'.* in the batch for {kind.__name__}, got none; make"):
        kind().update(**given)
    with pytest.raises(ValueError, match=r"expected 'shortcut_mask' in the batch for .*, got \['mask'\]"):
        kind("shortcut_mask").update(**given, mask=MASK)


@pytest.fixture(scope="module")
def shapes():
    data = ShapesDataModule(image_size=16, n_train=1, n_val=12, n_test=1, batch_size=12, annotations=True, shortcut=1.0)
    data.setup("validate")
    return data


def test_methods_share_the_passes_of_tests_that_read_no_map(shapes, function):
    """12 images clean and with three changes, whatever the number of methods; the top pixels are each method's own."""
    for methods in (1, 3):
        model = function(lambda x: x.mean((2, 3)).repeat(1, 2))
        named = {f"random{i}": RandomMap(seed=i) for i in range(methods)}
        table = evaluate(model, named, TESTS, shapes, controls=False, progress=False)
        assert model.seen == 4 * 12
        for test in TESTS:
            assert {table[name, test].mean for name in named} == {table["random0", test].mean}
        model.sizes.clear()
        evaluate(model, named, TopReplacedAccuracy(), shapes, controls=False, progress=False)
        assert model.seen == (1 + methods) * 12


def test_maps_that_are_not_numbers_change_no_test_without_maps(images):
    with scored_batch(Reader(OBJECT), images, torch.full((4, 4, 4), torch.nan), TARGET, mask=MASK) as scored:
        assert ObjectAccuracy(substrate="mean").rows(scored)[:, 0].tolist() == [100] * 4
        assert TopReplacedAccuracy(20).rows(scored).isnan().all()


def test_passports_name_what_stays_and_what_is_replaced():
    assert ObjectAccuracy().passport()["object"] == "mask, else boxes"
    assert BackgroundAccuracy().passport()["replaced"] == "boxes, else the box around the mask"
    assert BackgroundAccuracy().passport()["substrate"] == "linear imputation"
    assert ObjectAccuracy().adapted((0.5,), (0.25,), False).passport()["substrate"] == "black"
