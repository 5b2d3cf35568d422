"""Masks and boxes of batches, whichever form they have."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution.core.components import (
    boxes_around,
    connected_components,
    find_runs,
    first_runs,
    largest_boxes,
)
from interpretable_training.metrics.core.contours import contour_boxes, enclosed_areas, filled, largest_contour_boxes
from interpretable_training.metrics.core.regions import (
    NoRegionError,
    area,
    boxes,
    clipped,
    inside,
    iou,
    of_class,
    pixels_of,
)
from interpretable_training.metrics.core.rescoring import ScoredBatch

NAN = torch.nan


def scored(size=(2, 4, 6), **annotations):
    return ScoredBatch(saliency=torch.rand(size), annotations=annotations)


def test_a_pixel_lies_in_a_box_if_its_middle_does():
    U = inside(torch.tensor([[[1.0, 0.0, 3.0, 2.0]], [[1.4, 0.6, 2.6, 1.6]]]), (3, 4))
    assert U[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert U[1].nonzero().tolist() == [[1, 1], [1, 2]]


def test_the_union_of_boxes_and_padding():
    U = pixels_of(scored(boxes=torch.tensor([[[0.0, 0, 2, 2], [1, 1, 3, 3]], [[5, 3, 6, 4], [NAN] * 4]])), "auto")
    assert U.sum((1, 2)).tolist() == [7, 1]


def test_boxes_may_be_ragged_one_per_image_or_none():
    rows = [[[0, 0, 1, 1], [2, 2, 4, 4]], []]
    results = boxes(scored(boxes=[torch.tensor(r, dtype=torch.float32) for r in rows]), "boxes")
    assert results[0].tolist() == rows[0]
    assert results[1].isnan().all()
    assert boxes(scored(boxes=torch.tensor([[0, 0, 1, 1], [2, 2, 4, 4]])), "boxes").shape == (2, 1, 4)
    assert boxes(scored(boxes=torch.zeros(2, 0, 4)), "boxes").isnan().all()


def test_boxes_are_clipped_and_empty_ones_dropped():
    given = torch.tensor([[[-2.0, -1, 3, 9], [6, 0, 8, 2], [2, 2, 2, 4], [3, 3, 1, 1]]])
    results = clipped(given, (4, 6))
    assert results[0, 0].tolist() == [0, 0, 3, 4]
    assert results[0, 1:].isnan().all()


def test_a_mask_has_a_box_and_boxes_have_pixels():
    mask = torch.zeros(2, 4, 6)
    mask[0, 1, 2] = mask[0, 3, 4] = 1
    there = scored(mask=mask)
    assert boxes(there, "auto")[0].tolist() == [[2, 1, 5, 4]]
    assert boxes(there, "mask")[1].isnan().all()
    assert torch.equal(pixels_of(there, "auto"), mask > 0)


def test_which_annotation_is_taken():
    mask, cue = torch.zeros(2, 2, 4, 6)
    mask[:, 0, 0], cue[:, 3, 3] = 1, 1
    there = scored(mask=mask, shortcut_mask=cue, boxes=torch.tensor([[[2.0, 2, 3, 3]]] * 2))
    assert pixels_of(there, "auto")[0].nonzero().tolist() == [[0, 0]]
    assert pixels_of(there, "boxes")[0].nonzero().tolist() == [[2, 2]]
    assert pixels_of(there, "shortcut_mask")[0].nonzero().tolist() == [[3, 3]]
    assert boxes(there, "auto")[0].tolist() == [[2, 2, 3, 3]]
    assert boxes(there, "shortcut_mask")[0].tolist() == [[3, 3, 4, 4]]
    with pytest.raises(NoRegionError, match="'mask' or 'boxes'"):
        pixels_of(scored(shortcut_mask=cue), "auto")


def test_intersection_over_union_by_hand():
    """Squares of side 10 that are shifted by 5: 50 / 150."""
    box, others = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[[5.0, 0, 15, 10], [20, 20, 30, 30], [NAN] * 4]])
    assert_close(iou(box, others), torch.tensor([[1 / 3, 0, 0]]))
    assert_close(iou(box, others, areas=2 * area(others))[0, 0], torch.tensor(50 / 250))
    assert_close(iou(box, others, border=1.0)[0, 0], torch.tensor(66 / (121 + 121 - 66)))


def test_intersection_over_union_as_torchvision():
    from torchvision.ops import box_iou

    corners = 20 * torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0))
    results = torch.cat([corners.amin(1), corners.amax(1)], 1)
    assert_close(iou(results[:1], results[None])[0], box_iou(results[:1], results)[0])


def test_the_class_of_a_row_picks_its_boxes_and_pixels():
    there = {
        "boxes": torch.tensor([[[0.0, 0, 1, 1], [2, 2, 4, 4]], [[0, 0, 2, 2], [NAN] * 4]]),
        "box_target": torch.tensor([[3, 1], [1, -1]]),
        "mask_target": torch.tensor([[[3, 1, -1]], [[1, 1, -1]]]),
    }
    results = of_class(there, torch.tensor([1, 3]))
    assert results["boxes"].isnan().all(2).tolist() == [[True, False], [True, True]]
    assert results["mask"].tolist() == [[[False, True, False]], [[False, False, False]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mask": torch.zeros(2, 6, 4)},
            r"expected mask \(2, 4, 6\), one per map at its resolution, got shape \(2, 6, 4",
        ),
        ({"mask": [torch.zeros(4, 6)] * 2}, "expected mask .* got list"),
        ({"boxes": torch.zeros(2, 3)}, r"expected boxes \(2, n, 4\), padded with NaN, or a list"),
        ({"boxes": torch.zeros(3, 1, 4)}, r"got \(3, 1, 4\)"),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        pixels_of(scored(**given), "auto")


def drawn(*lines):
    return torch.tensor([[sign == "#" for sign in line] for line in lines])[None]


def test_pixels_that_touch_at_corners_are_apart_or_not():
    M = drawn("#..#", ".#..", "...#")
    assert connected_components(M, 4).tolist() == [[[1, 0, 0, 2], [0, 3, 0, 0], [0, 0, 0, 4]]]
    assert connected_components(M, 8).tolist() == [[[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 3]]]


def test_the_other_diagonal():
    assert connected_components(drawn("..#", ".#.", "#.."), 8).tolist() == [[[0, 0, 1], [0, 1, 0], [1, 0, 0]]]


def test_a_spiral_is_one_component():
    M = drawn("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")
    assert connected_components(M).max() == 1
    assert largest_boxes(M).tolist() == [[0, 0, 7, 7]]


def test_a_comb_joins_at_its_last_row():
    M = torch.ones(1, 9, 21, dtype=torch.bool)
    M[:, :-1, 1::2] = False
    assert connected_components(M).max() == 1


def test_images_and_ends_of_rows_do_not_touch():
    M = torch.zeros(2, 2, 3, dtype=torch.bool)
    M[0, 0, 2] = M[0, 1, 0] = M[0, 1, 2] = M[1, 0, 0] = True
    assert connected_components(M).tolist() == [[[0, 0, 1], [2, 0, 1]], [[1, 0, 0], [0, 0, 0]]]
    assert connected_components(M, 8).max() == 2


def test_the_largest_component_and_of_equals_the_first():
    M = torch.cat([drawn("##..", "...#", ".###"), drawn("#..#", "#..#", "...."), drawn("....", "....", "....")])
    boxes = largest_boxes(M)
    assert boxes[:2].tolist() == [[1, 1, 4, 3], [0, 0, 1, 2]]
    assert boxes[2].isnan().all()


def test_boxes_around_hold_every_pixel():
    M = torch.cat([drawn("#...", "...#", "...."), drawn("....", "....", "....")])
    assert boxes_around(M)[0].tolist() == [0, 0, 4, 2]
    assert boxes_around(M)[1].isnan().all()


def test_areas_and_boxes_of_all_components():
    runs = find_runs(drawn("##..", "#..#", "...#"))
    first = runs.parent.unique()
    assert runs.areas()[first].tolist() == [3, 2]
    assert runs.boxes()[first].tolist() == [[0, 0, 2, 2], [3, 1, 4, 3]]


def test_no_images_and_another_connectivity():
    assert largest_boxes(torch.zeros(0, 3, 3, dtype=torch.bool)).shape == (0, 4)
    with pytest.raises(ValueError, match="expected connectivity 4 or 8, got 6"):
        find_runs(torch.zeros(1, 3, 3, dtype=torch.bool), 6)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("size", [(17, 23), (1, 9), (9, 1), (40, 40)])
def test_as_scipy(connectivity, share, size):
    """Noise, whose components are as tangled as they can be; the numbers of components are equal too."""
    ndimage = pytest.importorskip("scipy.ndimage")
    M = torch.rand(4, *size, generator=torch.Generator().manual_seed(int(10 * share))) < share
    around = ndimage.generate_binary_structure(2, connectivity // 4)
    for mask, labels, box in zip(M, connected_components(M, connectivity), largest_boxes(M, connectivity)):
        theirs, count = ndimage.label(mask.numpy(), around)
        assert labels.tolist() == theirs.tolist()
        if count:
            areas = torch.from_numpy(theirs).flatten().bincount()[1:]
            y, x = ndimage.find_objects(theirs)[int(areas.argmax())]
            assert box.tolist() == [x.start, y.start, x.stop, y.stop]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("connectivity", [4, 8])
def test_on_a_gpu(connectivity):
    M = torch.rand(8, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.55
    assert_close(largest_boxes(M.cuda(), connectivity).cpu(), largest_boxes(M, connectivity))
    assert_close(connected_components(M.cuda(), connectivity).cpu(), connected_components(M, connectivity))


def boxes_of(mask):
    return sorted(contour_boxes(mask)[1].tolist())


def areas_of(mask):
    runs = find_runs(filled(mask), 8)
    return (enclosed_areas(filled(mask), runs)[first_runs(runs)] / 2).tolist()


@pytest.mark.parametrize(
    ("lines", "area"),
    [
        (["#"], 0),
        (["####"], 0),  # a line, there and back
        (["#..", ".#.", "..#"], 0),
        (["##", "##"], 1),
        (["##", "#."], 0.5),
        (["###", "###", "###"], 4),
        (["###", "#.#", "###"], 4),  # the hole belongs to what the outer contour encloses
        ([".#.", "#.#", ".#."], 2),  # a diamond of diagonals of length sqrt 2
        (["#####", "#...#", "#.#.#", "#...#", "#####"], 16),  # with a component inside of the hole
        (["#####", "..#..", "#####"], 0 + 4 * 0.5),  # the corners beside the middle are cut
    ],
)
def test_areas_by_hand(lines, area):
    assert areas_of(drawn(*lines)) == [area]


def test_boxes_of_outer_contours_and_of_holes_by_hand():
    assert boxes_of(drawn("##...", "##...", "...##")) == [[0, 0, 2, 2], [3, 2, 5, 3]]
    assert boxes_of(drawn("###", "#.#", "###")) == [[0, 0, 3, 3]] * 2  # the hole's runs through the same pixels
    lines = ["######", "#....#", "#.##.#", "#....#", "######"]
    assert boxes_of(drawn(*lines)) == [[0, 0, 6, 5], [0, 0, 6, 5], [2, 2, 4, 3]]
    assert boxes_of(drawn("##.##", "#...#", "#####")) == [[0, 0, 5, 3]]  # a bay is open to the frame
    assert boxes_of(drawn(".###", "#..#", "###.")) == [[0, 0, 4, 3]] * 2  # corners close a hole


def test_of_equal_areas_the_last_is_the_largest():
    assert largest_contour_boxes(drawn("#..#", "....", "##..")).tolist() == [[0, 2, 2, 3]]
    assert largest_contour_boxes(drawn("##.##", "##.##")).tolist() == [[3, 0, 5, 2]]
    masks = torch.cat([drawn("...", "..."), drawn("##.", "##."), drawn("###", "###")])
    results = largest_contour_boxes(masks)
    assert results[0].isnan().all()
    assert results[1:].tolist() == [[0, 0, 2, 2], [0, 0, 3, 2]]
    assert largest_contour_boxes(masks[:1]).isnan().all()
    assert len(contour_boxes(masks[:1])[1]) == 0


STEPS = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]  # clockwise from the right


def walked(mask):
    """The polygon around the component of the first pixel, keeping the outside to the left, and its area."""
    padded = np.pad(mask, 1)
    start = tuple(np.argwhere(padded)[0])
    at, heading, path = start, 0, [start]
    while True:
        for turn in range(8):  # from the outside inward
            step = (heading + 6 + turn) % 8
            there = at[0] + STEPS[step][0], at[1] + STEPS[step][1]
            if padded[there]:
                break
        else:
            return 0.0  # alone
        if at == start and len(path) > 1 and there == path[1]:
            break
        at, heading = there, step
        path.append(at)
    y, x = np.array(path, float).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_areas_are_those_of_polygons_around_components():
    """The shoelace formula for the outer contour of the first component, found by walking around it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random((1, *rng.integers(2, 12, 2))) < rng.uniform(0.2, 0.8)
        if not mask.any():
            continue
        results = areas_of(torch.from_numpy(mask))
        assert results[0] == walked(mask[0])


@pytest.mark.slow
def test_contours_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(100):
        masks = rng.random((30, *rng.integers(1, 26, 2))) < rng.random((30, 1, 1))
        image, boxes = contour_boxes(torch.from_numpy(masks))
        largest = largest_contour_boxes(torch.from_numpy(masks))
        for i, mask in enumerate(masks.astype(np.uint8)):
            contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            theirs = [[x, y, x + w, y + h] for x, y, w, h in map(cv2.boundingRect, contours)]
            assert sorted(boxes[image == i].tolist()) == sorted(theirs)
            if contours:
                at = max(range(len(contours)), key=lambda k: cv2.contourArea(contours[k]))
                assert largest[i].tolist() == theirs[at]
