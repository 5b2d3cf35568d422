"""Maps against the pixels of objects: numbers by hand, and chance."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import EnergyPointingGame, PixelF1, PointingGame

MASK = torch.zeros(1, 6, 8, dtype=torch.bool)
MASK[:, 2:4, 3:6] = True
A = 6 / 48


def test_a_map_that_is_the_mask_is_perfect():
    for metric in (PointingGame(), EnergyPointingGame(), PixelF1()):
        assert metric.measure(saliency=MASK.float(), mask=MASK).item() == 100
        assert metric.measure(saliency=MASK.float(), boxes=torch.tensor([[[3.0, 2, 6, 4]]])).item() == 100


def test_the_highest_pixel_hits_or_misses(delta):
    assert PointingGame().measure(saliency=delta((6, 8), 2 * 8 + 5), mask=MASK).item() == 100
    assert PointingGame().measure(saliency=delta((6, 8), 2 * 8 + 6), mask=MASK).item() == 0


@pytest.mark.parametrize(("ties", "expected"), [("first", 0), ("any", 100), ("fraction", 100 * A)])
def test_a_constant_map_only_has_ties(ties, expected):
    assert PointingGame(ties=ties).measure(saliency=torch.ones(1, 6, 8), mask=MASK).item() == pytest.approx(expected)


def test_a_miss_by_less_than_the_tolerance(delta):
    """From (row 5, column 7) to the pixel (3, 5) it is the root of 8."""
    S = delta((6, 8), 5 * 8 + 7)
    assert PointingGame(tolerance=2.8).measure(saliency=S, mask=MASK).item() == 0
    assert PointingGame(tolerance=2.83).measure(saliency=S, mask=MASK).item() == 100
    assert PointingGame("torchray").measure(saliency=S, mask=MASK).item() == 100
    assert PointingGame("torchray", ties="any").measure(saliency=S, mask=0 * MASK).isnan().all()


def test_a_uniform_map_has_the_share_of_the_object():
    """Energy a, and F1 2 a / (1 + a)."""
    S = torch.full((1, 6, 8), 0.7)
    assert EnergyPointingGame().measure(saliency=S, mask=MASK).item() == pytest.approx(100 * A)
    ones = torch.ones(1, 6, 8)
    assert PixelF1().measure(saliency=ones, mask=MASK).item() == pytest.approx(200 * A / (1 + A))


def test_precision_and_recall_by_hand():
    """P = 1.5 / 2, R = 1.5 / 6."""
    S = torch.zeros(1, 6, 8)
    S[0, 2, 3], S[0, 3, 5], S[0, 0, 0] = 1.0, 0.5, 0.5
    assert EnergyPointingGame().measure(saliency=S, mask=MASK).item() == pytest.approx(75)
    assert PixelF1().measure(saliency=S, mask=MASK).item() == pytest.approx(100 * 2 * 0.75 * 0.25 / (0.75 + 0.25))


def test_the_best_box_alone():
    """P = 1/2 and R = 1 for each of two boxes that the map fills; both together are perfect."""
    S, boxes = torch.zeros(1, 6, 8), torch.tensor([[[0.0, 0, 2, 2], [4, 3, 6, 5]]])
    S[0, :2, :2] = S[0, 3:5, 4:6] = 1
    assert PixelF1().measure(saliency=S, boxes=boxes).item() == 100
    assert PixelF1(per_box=True).measure(saliency=S, boxes=boxes).item() == pytest.approx(200 / 3, abs=1e-3)
    outside = torch.tensor([[[-2.0, 0, 2, 2]]])  # half of it: R = 1/2 as published
    assert PixelF1(per_box=True).measure(saliency=S, boxes=outside).item() == pytest.approx(200 / 3, abs=1e-3)
    assert PixelF1("casme").measure(saliency=S, boxes=outside).item() == pytest.approx(50, abs=1e-3)


def test_sums_in_boxes_as_a_loop():
    from interpretable_training.metrics.pointing import sums_in_boxes

    generator = torch.Generator().manual_seed(0)
    S = torch.rand(5, 6, 8, generator=generator)
    corners = torch.rand(5, 3, 2, 2, generator=generator) * torch.tensor([8.0, 6.0])
    corners[:, 0] = corners[:, 0].round()
    boxes = torch.cat([corners.amin(2), corners.amax(2)], 2)
    x, y = torch.arange(8) + 0.5, torch.arange(6) + 0.5
    for s, rows, results in zip(S, boxes, sums_in_boxes(S, boxes)):
        for (x1, y1, x2, y2), total in zip(rows.tolist(), results.tolist()):
            part = s[(y1 <= y) & (y < y2)][:, (x1 <= x) & (x < x2)]
            assert total == pytest.approx(float(part.sum()), abs=1e-6)


def test_a_zero_map_has_no_energy():
    for metric in (EnergyPointingGame(), PixelF1(), PixelF1(per_box=True, region="mask")):
        assert metric.measure(saliency=torch.zeros(1, 6, 8), mask=MASK).item() == 0


def test_noise_is_at_chance():
    """Of exchangeable pixels each is the highest, and holds the energy, with equal probability: a for both."""
    generator = torch.Generator().manual_seed(0)
    n = 4000
    S, mask = torch.rand(n, 6, 8, generator=generator), MASK.expand(n, 6, 8)
    hits, energy = (metric.measure(saliency=S, mask=mask) for metric in (PointingGame(), EnergyPointingGame()))
    for results in (hits, energy):
        assert abs(float(results.mean()) - 100 * A) < 4 * float(results.std()) / n**0.5
    assert pytest.approx(float(hits.std()), rel=0.05) == 100 * (A * (1 - A)) ** 0.5


def test_the_energy_on_a_cue_is_another_region():
    cue = torch.zeros(1, 6, 8)
    cue[0, 0, 0] = 1
    S = torch.zeros(1, 6, 8)
    S[0, 0, 0], S[0, 2, 3] = 0.75, 0.25
    metric = EnergyPointingGame(region="shortcut_mask")
    assert metric.measure(saliency=S, mask=MASK, shortcut_mask=cue).item() == 75
    assert EnergyPointingGame().measure(saliency=S, mask=MASK, shortcut_mask=cue).item() == 25


def test_images_without_the_region_have_no_number():
    mask = torch.cat([MASK, 0 * MASK])
    for metric in (PointingGame(), EnergyPointingGame(), PixelF1(), PixelF1(per_box=True, region="mask")):
        results = metric.measure(saliency=torch.rand(2, 6, 8), mask=mask)
        assert results.isnan().tolist() == [False, True]


def test_maps_of_half_precision_are_summed_in_full():
    """4097 is no half: with sums in half precision the share would be 1."""
    S, mask = torch.ones(1, 4097, 4, dtype=torch.half), torch.zeros(1, 4097, 4)
    mask[:, :1] = 1
    assert_close(EnergyPointingGame().measure(saliency=S, mask=mask), torch.tensor([100 / 4097]).double())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointingGame(ties="last"), r"expected PointingGame\.ties to be one of"),
        (lambda: PointingGame(tolerance=-1), "expected tolerance as a number of at least 0"),
        (lambda: PixelF1("torchray"), r"expected PixelF1\.preset to be one of"),
    ],
)
def test_options_of_pointing_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_on_a_planted_cue_less_is_better():
    assert EnergyPointingGame().passport()["direction"] == "higher is better"
    assert EnergyPointingGame(region="shortcut_mask").passport()["direction"] == "lower is better"
