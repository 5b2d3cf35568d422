"""Boxes at the best threshold: numbers by hand, and an independent implementation with OpenCV."""

import pytest
import torch

from interpretable_training.metrics import BoxAccuracy

BOX = torch.tensor([[[5.0, 5.0, 15.0, 15.0]]])


def boxed(x1, y1, x2, y2, value=1.0, size=(24, 30)):
    S = torch.zeros(1, *size)
    S[:, y1:y2, x1:x2] = value
    return S


def score(metric, saliency, boxes):
    metric.update(saliency=saliency, boxes=boxes)
    return metric.compute().item()


def test_a_map_that_is_the_box_is_right_at_every_threshold():
    assert score(BoxAccuracy(steps=10), boxed(5, 5, 15, 15), BOX) == 100
    assert BoxAccuracy(steps=10).measure(saliency=boxed(5, 5, 15, 15), boxes=BOX).item() == 100


def test_a_whole_image_is_right_where_the_object_fills_it():
    """Of an object that fills 40 percent, one of the three overlaps is reached."""
    S = torch.ones(1, 10, 10)
    S[0, 0, 0] = 0
    assert score(BoxAccuracy(), S, torch.tensor([[[0.0, 0, 10, 4]]])) == pytest.approx(100 / 3)


def test_the_threshold_is_the_same_for_all_images():
    """One image needs a low threshold, the other a high one: each alone is right, both together are not."""
    wide = boxed(0, 0, 30, 24, 0.5) * (boxed(5, 5, 15, 15) == 0) + boxed(5, 5, 15, 15)
    low = boxed(5, 5, 15, 15, 0.3)
    low[0, 20, 20] = 1.0
    metric = BoxAccuracy(deltas=(0.7,), steps=10)
    assert score(metric, wide, BOX) == 100
    assert score(BoxAccuracy(deltas=(0.7,), steps=10), low, BOX) == 100
    metric.update(saliency=low, boxes=BOX)
    assert metric.compute().item() == 50


def test_the_largest_component_or_any():
    S = boxed(5, 5, 15, 15) + boxed(16, 0, 30, 24)
    assert score(BoxAccuracy(steps=4), S, BOX) == 0
    assert score(BoxAccuracy(steps=4, components="all"), S, BOX) == 100


def test_an_overlap_as_large_as_asked_is_enough():
    half = torch.tensor([[[5.0, 5.0, 15.0, 10.0]]])
    assert score(BoxAccuracy(deltas=(0.5,), steps=4), boxed(5, 5, 15, 15), half) == 100
    assert score(BoxAccuracy(deltas=(0.501,), steps=4), boxed(5, 5, 15, 15), half) == 0


def test_a_constant_map_has_no_box():
    for preset in ("thesis", "maxboxacc", "maxboxaccv2"):
        assert score(BoxAccuracy(preset), torch.zeros(1, 24, 30), torch.tensor([[[0.0, 0, 30, 24]]])) == 0


def test_images_without_boxes_are_left_out():
    results = BoxAccuracy(steps=4).measure(saliency=boxed(5, 5, 15, 15).expand(2, -1, -1), boxes=[BOX[0], BOX[0, :0]])
    assert results.isnan().tolist() == [False, True]
    both = BoxAccuracy(steps=4, components="all")
    assert both.measure(saliency=boxed(5, 5, 15, 15).expand(2, -1, -1), boxes=[BOX[0], BOX[0, :0]])[1].isnan()


def ring(size=(24, 30)):
    """A ring of one pixel around the hole x, y = 6..13, 6..13, beside a block of 10 x 10 that encloses less."""
    S = boxed(5, 5, 15, 15, size=size)
    S[:, 6:14, 6:14] = 0
    return S + boxed(17, 10, 26, 19, size=size)


def test_published_largest_box_is_of_the_largest_enclosed_area():
    """The ring has 36 pixels and encloses 9 x 9 between their middles, the block has 81 and encloses 8 x 8."""
    published = torch.tensor([[[5.0, 5.0, 15.0, 15.0]]])
    S = ring()
    assert score(BoxAccuracy("maxboxacc", deltas=(1.0,)), S, published) == 100
    block = torch.tensor([[[17.0, 10.0, 26.0, 19.0]]])
    assert score(BoxAccuracy(deltas=(1.0,), steps=4), S, block) == 100  # by pixels


def test_published_boxes_of_holes_count():
    """The contour of a hole runs through the pixels around it: its box is the hole's, one pixel longer on each side."""
    S = boxed(2, 2, 28, 22)
    S[:, 8:12, 9:19] = 0
    hole = torch.tensor([[[8.0, 7.0, 20.0, 13.0]]])
    assert score(BoxAccuracy("maxboxaccv2", deltas=(1.0,)), S, hole) == 100
    assert score(BoxAccuracy("maxboxaccv2", deltas=(1.0,)), boxed(2, 2, 28, 22), hole) == 0
    assert score(BoxAccuracy("maxboxacc", deltas=(1.0,)), S, hole) == 0  # it encloses less than what is around it
    assert score(BoxAccuracy(components="all", deltas=(0.7,), steps=4), S, hole) == 0  # no component, else


@pytest.mark.parametrize("preset", ["maxboxaccv2", "maxboxacc"])
@pytest.mark.parametrize("cells", [5, 12])
def test_as_published_with_opencv(preset, cells):
    """Bytes, a threshold for each of their values, contours of OpenCV, boxes one longer; the finer maps have holes."""
    cv2 = pytest.importorskip("cv2")
    generator = torch.Generator().manual_seed(0)
    S = torch.rand(6, 1, cells, cells, generator=generator)
    S = torch.nn.functional.interpolate(S, (24, 30), mode="bilinear")[:, 0]
    S = (S - S.amin((1, 2), keepdim=True)) / (S.amax((1, 2), keepdim=True) - S.amin((1, 2), keepdim=True))
    B = torch.tensor([[[3.0, 4.0, 17.0, 15.0]]]).expand(6, 1, 4)
    metric = BoxAccuracy(preset)
    best = torch.zeros(6, 255)
    for i, s in enumerate((S * 255).floor().byte().numpy()):
        for t in range(255):
            mask = (s > int(t / 255 * s.max() + 1e-9)).astype("uint8")
            contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if preset == "maxboxacc" and contours:
                contours = [max(contours, key=cv2.contourArea)]
            for x, y, w, h in map(cv2.boundingRect, contours):
                x2, y2 = min(x + w, 29), min(y + h, 23)
                width, height = min(x2, 17) - max(x, 3) + 1, min(y2, 15) - max(y, 4) + 1
                common = max(width, 0) * max(height, 0)
                total = (x2 - x + 1) * (y2 - y + 1) + 15 * 12 - common
                best[i, t] = max(best[i, t], common / total)
    expected = torch.stack([(best >= d).float().mean(0).max() for d in metric.deltas]).mean()
    assert score(metric, S, B) == pytest.approx(100 * float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoxAccuracy("wsol"), r"expected BoxAccuracy\.preset to be one of"),
        (lambda: BoxAccuracy(components="any"), r"expected BoxAccuracy\.components to be one of"),
        (lambda: BoxAccuracy("maxboxacc", connectivity=4), r"expected connectivity to be one of \(8,\)"),
        (lambda: BoxAccuracy(steps=0), "expected steps as a whole number of at least 1"),
        (lambda: BoxAccuracy(deltas=(0.5, 1.5)), "expected deltas as a number above 0 and up to 1"),
    ],
)
def test_options_of_box_accuracy_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()
