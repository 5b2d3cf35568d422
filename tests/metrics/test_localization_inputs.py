"""Localization metrics of whatever comes: no images, half precision, large images, signals, lists, wrong shapes."""

import pytest
import torch
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
from interpretable_training.metrics.pointing import sum_over

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
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
    found = SaliencyMetric().measure(
        model=network.bfloat16(), images=images.bfloat16(), saliency=S.bfloat16(), target=target
    )
    expected = SaliencyMetric().measure(
        model=network.double(), images=images.double(), saliency=S.bfloat16().double(), target=target
    )
    assert_close(found, expected, atol=0.05, rtol=0)


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
    found = of_class({"boxes": boxes, "box_target": names}, torch.tensor([2, 4, 2]))["boxes"]
    assert [rows.tolist() for rows in found] == [BOXES[0, 1:].tolist(), [], []]
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
    found = evaluate(network, GradCAM("3"), metric, [{**batch, "box_target": names}], **options)
    assert_close(found.per_image("gradcam", "energy"), first.per_image("gradcam", "energy"))
    both = evaluate(network, GradCAM("3"), metric, [batch], **options).per_image("gradcam", "energy")
    assert (both >= found.per_image("gradcam", "energy")).all()
    assert both.max() == 100


def test_metrics_that_share_a_batch_do_not_disturb_each_other():
    """What one of them has computed, another with other options or of another region does not take for its own."""
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
