"""Pixel average precision: numbers by hand, slow loops over thresholds and pixels, and scikit-learn."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import Attribution, GradCAM, normalize
from interpretable_training.metrics import PxAP, evaluate

S = torch.tensor([[[0.9, 0.7, 0.95], [0.5, 0.2, 0.1]]])
MASK = torch.tensor([[[1, 0, 0], [1, 0, 0]]])


def test_px_ap_by_hand():
    """From the top: 0.95 no, 0.9 yes (P = 1/2), 0.7 no, 0.5 yes (P = 2/4), each a half of the recall."""
    assert PxAP().measure(saliency=S, mask=MASK).item() == pytest.approx(50)
    ignored = torch.tensor([[[0, 0, 1], [0, 0, 0]]])  # without 0.95: P = 1 and 2/3
    assert PxAP().measure(saliency=S, mask=MASK, ignore_mask=ignored).item() == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_pixels_of_the_object_are_never_ignored():
    everything = torch.ones(1, 2, 3)
    assert PxAP().measure(saliency=S, mask=MASK, ignore_mask=everything).item() == 100


def test_pixels_between_two_thresholds_are_equal():
    """With t = 0, 1/2, 1 the pixels from 0.5 on are one step: P = 2/4 for all of the recall."""
    assert PxAP(2).measure(saliency=S, mask=MASK).item() == pytest.approx(50)
    assert PxAP(1).measure(saliency=S, mask=MASK).item() == pytest.approx(100 * 2 / 6)  # all pixels are at least 0
    edge = torch.tensor([[[1.0, 0.999, 0.25]]])
    assert PxAP(4).measure(saliency=edge, mask=torch.tensor([[[1, 0, 0]]])).item() == 100  # 1 has a step of its own
    assert PxAP(4).measure(saliency=edge, mask=torch.tensor([[[0, 0, 1]]])).item() == pytest.approx(100 / 3)


def test_px_ap_of_the_object_itself_and_of_a_constant_map():
    mask = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    assert PxAP()(saliency=mask.float(), mask=mask).item() == 100
    for value in (0.0, 0.37, 1.0):
        results = PxAP()(saliency=torch.full((3, 9, 7), value), mask=mask)
        assert results.item() == pytest.approx(100 * mask.float().mean().item(), abs=1e-4)


def test_noise_has_about_the_share_of_the_object():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 40, 40, generator=generator) < 0.2
    assert PxAP()(saliency=torch.rand(20, 40, 40, generator=generator), mask=mask).item() == pytest.approx(20, abs=1)


def slow(maps, masks, ignored, steps):
    """(1) to (3) threshold by threshold, from the highest, over all pixels of all images."""
    pixels = [
        (s, u)
        for S, U, V in zip(maps, masks, ignored)
        for s, u, v in zip(S.ravel(), U.ravel(), V.ravel())
        if u or not v
    ]
    area, recall = 0.0, 0.0
    for k in range(steps, -1, -1):
        above = [u for s, u in pixels if s >= k / steps]
        now = sum(above) / sum(u for _, u in pixels)
        area += (sum(above) / len(above) if above else 0) * (now - recall)
        recall = now
    return 100 * area


def some(seed, levels=None):
    """Smooth maps, objects that overlap with where they are high, and pixels to ignore."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.nn.functional.interpolate(
        torch.rand(4, 1, 4, 5, generator=generator).double(), (10, 13), mode="bilinear"
    )
    maps = normalize(maps[:, 0])
    maps = maps if levels is None else (maps * levels).round() / levels
    masks = maps + torch.rand(4, 10, 13, generator=generator) > 1.1
    return maps, masks, torch.rand(4, 10, 13, generator=generator) < 0.2


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
@pytest.mark.parametrize("levels", [None, 10])
def test_px_ap_is_the_slow_sum(steps, levels):
    maps, masks, ignored = some(0, levels)
    metric = PxAP(steps)
    for part in (slice(3), slice(3, 4)):
        metric.update(saliency=maps[part], mask=masks[part], ignore_mask=ignored[part])
    assert metric.compute().item() == pytest.approx(slow(maps.numpy(), masks.numpy(), ignored.numpy(), steps), abs=1e-4)
    alone = PxAP(steps).measure(saliency=maps, mask=masks, ignore_mask=ignored)
    expected = [slow(*(v[i : i + 1].numpy() for v in (maps, masks, ignored)), steps) for i in range(4)]
    assert_close(alone, torch.tensor(expected, dtype=torch.float64))


def test_px_ap_is_the_average_precision_of_scikit_learn():
    """Of the thresholds that pixels reach; with as many steps as there are levels nothing is lost."""
    average_precision = pytest.importorskip("sklearn.metrics").average_precision_score
    maps, masks, ignored = some(1, levels=50)
    counted = (masks | ~ignored).numpy()
    expected = average_precision(masks.numpy()[counted], (maps.numpy()[counted] * 50).round())
    results = PxAP(50)(saliency=maps, mask=masks, ignore_mask=ignored)
    assert results.item() == pytest.approx(100 * expected, abs=1e-4)


def test_px_ap_is_the_published_histogram():
    """As the authors count: histograms with bins up to 2 and 3, summed from the top, precision times rise of recall."""
    maps, masks, ignored = some(2)
    thresholds = np.arange(0, 1, 0.001)
    edges = np.append(thresholds, [1.0, 2.0, 3.0])
    inside, outside = (
        sum(np.histogram(s[where], edges)[0] for s, where in zip(maps.numpy(), which.numpy()))
        for which in (masks, ~masks & ~ignored)
    )
    tp, fp = inside[::-1].cumsum(), outside[::-1].cumsum()
    some_positive = tp + fp > 0
    precision = np.divide(tp, tp + fp, where=some_positive, out=np.zeros(len(tp)))
    expected = 100 * (precision[1:] * np.diff(tp / tp[-1])).sum()
    results = PxAP(1000)(saliency=maps, mask=masks, ignore_mask=ignored)
    assert results.item() == pytest.approx(expected, abs=1e-3)


def test_images_without_an_object_are_left_out_and_counted():
    metric = PxAP()
    metric.update(saliency=torch.cat([S, S]), mask=torch.cat([MASK, 0 * MASK]))
    with pytest.warns(UserWarning, match="leaves out 1 of 2 images"):
        assert metric.compute().item() == pytest.approx(50)


def test_boxes_and_cues_may_be_the_object():
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 2.0]]])
    assert PxAP().measure(saliency=S, boxes=boxes).item() == pytest.approx(50)
    cue = PxAP(region="shortcut_mask")
    assert cue.measure(saliency=S, mask=1 - MASK, shortcut_mask=MASK).item() == pytest.approx(50)
    assert cue.passport()["direction"] == "lower is better"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PxAP(0), "expected steps as a whole number of at least 1 .* got 0"),
        (lambda: PxAP().update(saliency=S), "expected 'mask' or 'boxes' in the batch for PxAP"),
        (lambda: PxAP().update(saliency=S, mask=MASK, ignore_mask=MASK[0]), r"expected ignore_mask \(1, 2, 3\)"),
    ],
)
def test_wrong_arguments_of_px_ap(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Shown(Attribution):
    """The first channel as the map."""

    def attribute(self, prepared, images, target):
        return images[:, 0]


def test_evaluate_takes_masks_and_what_to_ignore_from_batches(network, images, target):
    masks, ignored = images[:, 1] > 0, images[:, 2] > 0.5
    batches = [
        {"image": images[part], "target": target[part], "mask": masks[part], "ignore_mask": ignored[part]}
        for part in (slice(2), slice(2, 5))
    ]
    table = evaluate(network, {"cam": GradCAM("0"), "shown": Shown()}, PxAP(20), batches, progress=False, resamples=20)
    expected = slow(normalize(images[:, 0]).numpy(), masks.numpy(), ignored.numpy(), 20)
    cell = table["shown", "px_ap"]
    assert cell.mean == pytest.approx(expected, abs=1e-6)
    assert cell.low <= cell.mean <= cell.high


def test_small_differences_of_large_images_are_no_rounding(function):
    """Two of 10000 pixels too many: P = 5000 / 5002, however large the counts behind it are."""
    mask = torch.zeros(4, 100, 100)
    mask[:, :50] = 1
    images = torch.stack([mask, mask], 1)
    images[:, 1, 99, :2] = 1

    @dataclass(frozen=True)
    class Channel(Attribution):
        channel: int

        def attribute(self, prepared, images, target):
            return images[:, self.channel]

    net = function(lambda x: x.mean((2, 3)))
    batch = {"image": images, "target": torch.zeros(4).long(), "mask": mask}
    table = evaluate(net, {"all": Channel(0), "more": Channel(1)}, PxAP(), [batch], progress=False, resamples=20)
    assert table["all", "px_ap"].mean == 100
    assert table["more", "px_ap"].difference == pytest.approx(100 * 5000 / 5002 - 100)
