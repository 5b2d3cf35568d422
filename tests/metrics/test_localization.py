"""Boxes of maps against those of objects: numbers by hand."""

import math

import pytest
import torch
from support.families import few
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM
from interpretable_training.metrics import (
    BoxAccuracy,
    EnergyLocalizationError,
    EnergyPointingGame,
    LocalizationError,
    OfficialMetric,
    PixelF1,
    PointingGame,
    SaliencyMetric,
    evaluate,
)
from interpretable_training.metrics.core.regions import of_class
from interpretable_training.metrics.core.rescoring import ScoredBatch
from interpretable_training.metrics.localization import highest
from interpretable_training.metrics.pointing import sum_over

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
    results = OfficialMetric().measure(**given, model=model, images=images, target=torch.tensor([0, 1]))
    assert results.tolist() == [0, 100]
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
        (lambda: LocalizationError(region="box"), r"expected LocalizationError\.region to be one of"),
        (
            lambda: LocalizationError("torchray"),
            r"expected LocalizationError\.preset to be one of \('thesis', 'casme'\)",
        ),
        (lambda: EnergyLocalizationError(0.0), "expected energy as a number above 0 and up to 1"),
        (lambda: EnergyLocalizationError(math.nan), "expected energy as a number above 0 and up to 1"),
    ],
)
def test_options_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()


METRICS = {
    "official": OfficialMetric(),
    "official_iou": OfficialMetric(iou=True),
    "error": LocalizationError(),
    "error_iou": LocalizationError(iou=True, connectivity=8),
    "error_casme": LocalizationError("casme", iou=True),
    "energy_error": EnergyLocalizationError(iou=True),
    "f1": PixelF1(),
    "f1_casme": PixelF1("casme"),
    "accuracy": BoxAccuracy(),
    "accuracy_1": BoxAccuracy("maxboxacc"),
    "accuracy_2": BoxAccuracy("maxboxaccv2"),
    "pointing": PointingGame(),
    "pointing_near": PointingGame("torchray"),
    "pointing_share": PointingGame(ties="fraction"),
    "energy": EnergyPointingGame(),
}
NEED_PLACES = {
    name: metric for name, metric in METRICS.items() if name not in ("f1", "pointing", "pointing_share", "energy")
}
BOXES = torch.tensor([[[2.0, 1, 8, 6], [3, 3, 12, 9]]])


def given(metric, saliency, **where):
    return {
        "saliency": saliency,
        **where,
        **({"correct": torch.ones(len(saliency))} if "Official" in repr(metric) else {}),
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_batch_without_images_changes_nothing(metric):
    S = torch.rand(3, 9, 13, generator=torch.Generator().manual_seed(0))
    metric.reset()
    metric.update(**given(metric, S, boxes=BOXES.expand(3, 2, 4)))
    before = metric.compute()
    for where in ({"boxes": BOXES[:0]}, {"boxes": []}, {"mask": torch.zeros(0, 9, 13)}):
        assert metric.measure(**given(metric, S[:0], **where)).shape == (0,)
        metric.update(**given(metric, S[:0], **where))
    assert metric.count == 3
    assert torch.equal(metric.compute(), before)
    metric.reset()


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16], torch.bfloat16))
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_half_precision_is_not_computed_in(metric, dtype):
    """Of the same maps in full precision, with and without ties, each number is the same."""
    S = torch.rand(96, 9, 13, generator=torch.Generator().manual_seed(0))
    S[::2] = (S[::2] * 8).round() / 8
    S, boxes = S.to(dtype), BOXES.expand(96, 2, 4)
    assert torch.equal(
        metric.measure(**given(metric, S, boxes=boxes)), metric.measure(**given(metric, S.float(), boxes=boxes))
    )


def test_crops_in_half_precision(network, images, target):
    S = torch.rand(5, 12, 8, generator=torch.Generator().manual_seed(0))
    results = SaliencyMetric().measure(
        model=network.bfloat16(), images=images.bfloat16(), saliency=S.bfloat16(), target=target
    )
    expected = SaliencyMetric().measure(
        model=network.double(), images=images.double(), saliency=S.bfloat16().double(), target=target
    )
    assert_close(results, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("threshold", [k / 20 for k in range(1, 20)])
def test_an_overlap_equal_to_the_threshold(threshold):
    """Of an object of 20 rows the box holds k: IoU k / 20, which is enough where it has to be reached, not exceeded."""
    S, whole = torch.zeros(1, 20, 10), torch.tensor([[[0.0, 0, 10, 20]]])
    S[:, : round(20 * threshold)] = 1
    assert BoxAccuracy(deltas=(threshold,), steps=2).measure(saliency=S, boxes=whole).item() == 100
    for metric in (LocalizationError, EnergyLocalizationError):
        assert metric(threshold=threshold).measure(saliency=S, boxes=whole).item() == 100
        assert metric(threshold=threshold - 1e-6).measure(saliency=S, boxes=whole).item() == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_masks_of_any_type_are_pixels_or_not(dtype):
    S = torch.rand(3, 9, 13, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.zeros(3, 9, 13).to(dtype)
    mask[:, 2:5, 3:9] = 7 if dtype in (torch.uint8, torch.int64) else True
    share = S[:, 2:5, 3:9].sum((1, 2)) / S.sum((1, 2))
    assert_close(EnergyPointingGame().measure(saliency=S, mask=mask), 100 * share)
    R = S[:, 2:5, 3:9].sum((1, 2)) / 18
    assert_close(PixelF1().measure(saliency=S, mask=mask), 200 * share * R / (share + R))


@pytest.mark.parametrize("size", [(3, 7, 5), (5, 300, 301), (2, 600, 700)])
def test_sums_part_by_part(size):
    """Also where a part holds several images, and where one image is more than a part."""
    generator = torch.Generator().manual_seed(0)
    S, U = torch.rand(size, generator=generator), torch.rand(size, generator=generator) < 0.3
    expected = (S.double() * U).sum((1, 2))
    assert_close(sum_over(S.flatten(1), U).double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(sum_over(torch.ones(()).expand(U.flatten(1).shape), U), U.sum((1, 2)).float())


def test_shares_of_a_large_image_are_exact():
    """5 million pixels of 0.1, of which a thousandth is the object's."""
    S, mask = torch.full((1, 2500, 2000), 0.1), torch.zeros(1, 2500, 2000, dtype=torch.bool)
    mask[:, 5:10, 100:1100] = True
    assert EnergyPointingGame().measure(saliency=S, mask=mask).item() == pytest.approx(0.1, rel=1e-6)
    assert PixelF1().measure(saliency=torch.ones_like(S), mask=mask).item() == pytest.approx(0.2 / 1.001, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 20), (2, 4, 5, 6)], ids=["signal", "volume"])
def test_signals_and_volumes_have_energy_but_no_boxes(shape):
    S = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    mask = S > 0.5
    share = (S * mask).flatten(1).sum(1) / S.flatten(1).sum(1)
    assert_close(EnergyPointingGame().measure(saliency=S, mask=mask), 100 * share)
    assert PointingGame().measure(saliency=S, mask=mask).tolist() == [100, 100]
    assert PointingGame(ties="any").measure(saliency=S, mask=~mask).tolist() == [0, 0]
    for metric in NEED_PLACES.values():
        with pytest.raises(
            ValueError, match=r"expected saliency \(B, H, W\), where boxes and distances are, got \(2, "
        ):
            metric.measure(**given(metric, S, mask=mask))
    with pytest.raises(ValueError, match=r"expected saliency \(B, H, W\), where boxes"):
        EnergyPointingGame().measure(saliency=S, boxes=BOXES.expand(2, 2, 4))


def test_the_class_picks_boxes_of_lists_too():
    boxes, names = [BOXES[0], BOXES[0, :1], BOXES[0, :0]], [torch.tensor([4, 2]), torch.tensor([2]), torch.zeros(0)]
    results = of_class({"boxes": boxes, "box_target": names}, torch.tensor([2, 4, 2]))["boxes"]
    assert [rows.tolist() for rows in results] == [BOXES[0, 1:].tolist(), [], []]
    padded = torch.stack([BOXES[0], torch.cat([BOXES[0, :1], torch.full((1, 4), torch.nan)])])
    for where in (padded, list(padded)):
        rows = of_class({"boxes": where, "box_target": [[4, 2], [2, -1]]}, torch.tensor([4, 4]))["boxes"]
        assert [some[~some.isnan().any(1)].tolist() for some in rows] == [BOXES[0, :1].tolist(), []]
    one = of_class({"boxes": BOXES[0], "box_target": torch.tensor([4, 2])}, torch.tensor([4, 4]))["boxes"]
    assert one[0, 0].tolist() == BOXES[0, 0].tolist()
    assert one[1].isnan().all()
    for where in (padded, list(padded)):
        with pytest.raises(ValueError, match=r"expected box_target \(.*2,?\), the class of each box, got"):
            of_class({"boxes": where, "box_target": torch.zeros(2, 3)}, torch.tensor([4, 4]))


def test_evaluate_takes_the_boxes_of_the_label_from_lists(network, images, target):
    """A constant half of each image: all energy is there, and the boxes of other classes do not count."""
    halves = torch.tensor([[0.0, 0, 8, 6], [0, 6, 8, 12]])
    batch = {"image": images, "target": target, "boxes": [halves] * 5}
    options = {"resamples": 5, "progress": False, "controls": False}
    metric = {"energy": EnergyPointingGame()}
    first = evaluate(network, GradCAM("3"), metric, [{**batch, "boxes": [halves[:1]] * 5}], **options)
    names = [torch.tensor([int(c), -1]) for c in target]
    results = evaluate(network, GradCAM("3"), metric, [{**batch, "box_target": names}], **options)
    assert_close(results.per_image("gradcam", "energy"), first.per_image("gradcam", "energy"))
    both = evaluate(network, GradCAM("3"), metric, [batch], **options).per_image("gradcam", "energy")
    assert (both >= results.per_image("gradcam", "energy")).all()
    assert both.max() == 100


def test_metrics_that_share_a_batch_do_not_disturb_each_other():
    """Metrics with other options or regions do not share what one of them has computed."""
    generator = torch.Generator().manual_seed(0)
    S = torch.rand(6, 9, 13, generator=generator)
    where = {name: torch.rand(6, 9, 13, generator=generator) < 0.1 for name in ("mask", "shortcut_mask")}
    where["boxes"] = BOXES.expand(6, 2, 4)
    kinds = (PixelF1, EnergyPointingGame, PointingGame, LocalizationError)
    metrics = [kind(region=name) for kind in kinds for name in where]
    metrics += [LocalizationError(iou=True, connectivity=n, upstream=u) for n in (4, 8) for u in (False, True)]
    metrics += [EnergyLocalizationError(e, iou=True) for e in (0.5, 0.95)]
    shared = ScoredBatch(saliency=S, annotations=where)
    for metric in [*metrics, *reversed(metrics)]:
        assert torch.equal(metric.rows(shared)[:, 0], metric.measure(saliency=S, **where))


def test_saliency_metrics_of_other_boxes_score_other_crops(network, images, target):
    options = {"resamples": 5, "progress": False, "controls": False}
    metrics = {"ours": SaliencyMetric(), "casme": SaliencyMetric("casme"), "corners": SaliencyMetric(connectivity=8)}
    together = evaluate(network, GradCAM("3"), metrics, (images, target), **options)
    for name, metric in metrics.items():
        alone = evaluate(network, GradCAM("3"), {name: metric}, (images, target), **options)
        assert_close(together.per_image("gradcam", name), alone.per_image("gradcam", name))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"boxes": [torch.rand(4, 5)]}, r"or a list of 1 tensors \(n, 4\), got 1 with one of \(4, 5\)"),
        ({"boxes": [BOXES[0], BOXES[0]]}, r"or a list of 1 tensors \(n, 4\), got 2"),
        ({"boxes": BOXES, "correct": torch.ones(1, 1)}, r"expected correct \(1,\), whether each .* got \(1, 1\)"),
        ({"boxes": BOXES, "correct": torch.ones(3)}, r"expected correct \(1,\), whether each .* got \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_said(where, message):
    with pytest.raises(ValueError, match=message):
        OfficialMetric().update(saliency=torch.rand(1, 9, 13), **{"correct": torch.ones(1), **where})
