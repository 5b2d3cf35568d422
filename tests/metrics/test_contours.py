"""Contours: boxes and areas by hand, against a walk around each component, and against OpenCV where it is installed."""

import numpy as np
import pytest
import torch

from interpretable_training.metrics.core.components import find_runs, first_runs
from interpretable_training.metrics.core.contours import contour_boxes, enclosed_areas, filled, largest_contour_boxes


def drawn(*lines):
    return torch.tensor([[sign == "#" for sign in line] for line in lines])[None]


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
    found = largest_contour_boxes(masks)
    assert found[0].isnan().all()
    assert found[1:].tolist() == [[0, 0, 2, 2], [0, 0, 3, 2]]
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
        found = areas_of(torch.from_numpy(mask))
        assert found[0] == walked(mask[0])


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
