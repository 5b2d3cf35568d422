"""Connected components and boxes, by hand and against scipy."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics.core.components import boxes_around, connected_components, find_runs, largest_boxes


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
