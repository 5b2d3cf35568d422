"""Boxes of maps against those of objects: numbers by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import EnergyLocalizationError, LocalizationError, OfficialMetric
from interpretable_training.metrics.localization import highest

BOX = torch.tensor([[[5.0, 5.0, 15.0, 15.0]]])


def filled(*box, size=(30, 40)):
    """A map that is 1 inside of a box."""
    x1, y1, x2, y2 = box
    S = torch.zeros(1, *size)
    S[:, y1:y2, x1:x2] = 1
    return S


def test_a_map_that_is_the_box_makes_no_error():
    S = filled(5, 5, 15, 15)
    for metric in (LocalizationError(), LocalizationError(iou=True), EnergyLocalizationError(iou=True)):
        assert metric.measure(saliency=S, boxes=BOX).item() == 0
        assert metric.measure(saliency=S, mask=S).item() == 0
        assert metric.measure(saliency=S, boxes=[torch.tensor([[20.0, 20, 22, 22], [5, 5, 15, 15]])]).item() == 0


@pytest.mark.parametrize("metric", [LocalizationError, EnergyLocalizationError])
def test_a_box_beside_it(metric):
    """Shifted by half its side the IoU is 1/3: an error of all, or of two thirds."""
    S = filled(10, 5, 20, 15)
    assert metric().measure(saliency=S, boxes=BOX).item() == 100
    assert metric(threshold=0.3).measure(saliency=S, boxes=BOX).item() == 0
    assert metric(iou=True).measure(saliency=S, boxes=BOX).item() == pytest.approx(200 / 3)


def test_the_threshold_itself_is_not_enough():
    S, half = filled(5, 5, 15, 15), torch.tensor([[[5.0, 5.0, 15.0, 10.0]]])
    assert LocalizationError(threshold=0.5).measure(saliency=S, boxes=half).item() == 100
    assert LocalizationError(threshold=0.499).measure(saliency=S, boxes=half).item() == 0


def test_only_the_largest_component_counts_but_all_of_the_energy():
    S = filled(5, 5, 15, 15) + filled(30, 20, 33, 23)
    assert LocalizationError(iou=True).measure(saliency=S, boxes=BOX).item() == 0
    around = torch.tensor([[[5.0, 5.0, 33.0, 23.0]]])
    assert EnergyLocalizationError(iou=True).measure(saliency=S, boxes=around).item() == 0


def test_a_constant_map_has_the_whole_image_as_its_box():
    whole = torch.tensor([[[0.0, 0.0, 40.0, 30.0]]])
    for S in (torch.zeros(1, 30, 40), torch.full((1, 30, 40), 0.3)):
        for metric in (LocalizationError(iou=True), EnergyLocalizationError(iou=True)):
            assert metric.measure(saliency=S, boxes=whole).item() == 0
            metric.update(saliency=S, boxes=whole)
            assert metric.n_degenerate == 1


def test_published_boxes_are_one_short_and_count_what_lies_outside():
    """(9 x 9) / (10 x 10), and a box of which half is outside: (9 x 4) / (9 x 4 + 100 - 9 x 4)."""
    S = filled(5, 5, 15, 15)
    assert LocalizationError("casme", iou=True).measure(saliency=S, boxes=BOX).item() == pytest.approx(19)
    S, B = filled(0, 5, 5, 15), torch.tensor([[[-5.0, 5.0, 5.0, 15.0]]])
    assert LocalizationError(iou=True).measure(saliency=S, boxes=B).item() == 0
    assert LocalizationError("casme", iou=True).measure(saliency=S, boxes=B).item() == pytest.approx(100 - 36)


def test_a_published_box_of_a_single_pixel_has_no_area():
    S = filled(5, 5, 6, 6)
    assert LocalizationError("casme", iou=True).measure(saliency=S, boxes=[[[5, 5, 6, 6]]]).item() == 100


def test_components_that_touch_at_a_corner():
    S = filled(0, 0, 2, 2, size=(8, 8)) + filled(2, 2, 4, 4, size=(8, 8))
    whole = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    assert LocalizationError(iou=True, connectivity=8).measure(saliency=S, boxes=whole).item() == 0
    assert LocalizationError(iou=True).measure(saliency=S, boxes=whole).item() == pytest.approx(75)


def test_a_wrong_class_is_an_error_of_the_official_metric(function):
    model = function(lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1))
    S, images = filled(5, 5, 15, 15).expand(2, -1, -1), torch.ones(2, 3, 30, 40)
    given = {"saliency": S, "boxes": BOX.expand(2, 1, 4)}
    found = OfficialMetric().measure(**given, model=model, images=images, target=torch.tensor([0, 1]))
    assert found.tolist() == [0, 100]
    assert OfficialMetric().measure(**given, correct=torch.tensor([False, True])).tolist() == [100, 0]
    halfway = {**given, "saliency": filled(10, 5, 20, 15).expand(2, -1, -1), "correct": torch.tensor([True, False])}
    assert_close(
        OfficialMetric(iou=True).measure(**halfway), torch.tensor([200 / 3, 100.0]).double(), atol=1e-4, rtol=0
    )


def test_images_without_a_region_are_left_out_and_counted():
    S = filled(5, 5, 15, 15).expand(2, -1, -1)
    metric = LocalizationError()
    metric.update(saliency=S, boxes=[torch.tensor([[5.0, 5, 15, 15]]), torch.zeros(0, 4)])
    assert (int(metric.count), int(metric.n_invalid)) == (1, 1)
    with pytest.warns(UserWarning, match="leaves out 1 of 2 images, which have no annotated region"):
        assert metric.compute() == 0


def test_a_batch_without_annotations_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected 'boxes' or 'mask' in the batch for LocalizationError, got none"):
        LocalizationError().update(saliency=torch.rand(1, 4, 4))
    with pytest.raises(
        ValueError, match=r"expected 'shortcut_mask' in the batch for LocalizationError, got \['mask'\]"
    ):
        LocalizationError(region="shortcut_mask").update(saliency=torch.rand(1, 4, 4), mask=torch.ones(1, 4, 4))


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95, 1.0])
def test_the_fewest_pixels_that_hold_the_energy(energy):
    """Against a loop over pixels, the highest first."""
    S = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    for s, M in zip(S, highest(S, energy)):
        kept, total = 0.0, float(s.double().sum())
        order = s.flatten().argsort(descending=True).tolist()
        count = next(
            i for i, p in enumerate(order, 1) if (kept := kept + float(s.flatten()[p])) >= energy * total - 1e-9
        )
        assert M.flatten().nonzero().flatten().tolist() == sorted(order[:count])


def test_ties_at_the_cut_belong_to_the_set():
    S = torch.tensor([[[0.5, 1.0, 0.5], [0.5, 0.0, 0.5]]])
    assert highest(S, 0.4).sum() == 5  # one half pixel would do
    assert highest(S, 1 / 3).sum() == 1
    assert highest(torch.zeros(1, 2, 2), 0.9).sum() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalizationError(connectivity=6), "expected connectivity to be one of"),
        (lambda: LocalizationError(region="box"), "expected region to be one of"),
        (lambda: LocalizationError("torchray"), r"expected preset to be one of \['thesis', 'casme'\]"),
        (lambda: EnergyLocalizationError(0.0), "expected energy as a number above 0 and up to 1"),
        (lambda: EnergyLocalizationError(math.nan), "expected energy as a number above 0 and up to 1"),
    ],
)
def test_options_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()
