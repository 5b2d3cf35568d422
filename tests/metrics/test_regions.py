"""Masks and boxes of batches, whichever form they have."""

import pytest
import torch
from torch.testing import assert_close

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
    found = boxes(scored(boxes=[torch.tensor(r, dtype=torch.float32) for r in rows]), "boxes")
    assert found[0].tolist() == rows[0]
    assert found[1].isnan().all()
    assert boxes(scored(boxes=torch.tensor([[0, 0, 1, 1], [2, 2, 4, 4]])), "boxes").shape == (2, 1, 4)
    assert boxes(scored(boxes=torch.zeros(2, 0, 4)), "boxes").isnan().all()


def test_boxes_are_clipped_and_empty_ones_dropped():
    given = torch.tensor([[[-2.0, -1, 3, 9], [6, 0, 8, 2], [2, 2, 2, 4], [3, 3, 1, 1]]])
    found = clipped(given, (4, 6))
    assert found[0, 0].tolist() == [0, 0, 3, 4]
    assert found[0, 1:].isnan().all()


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
    found = torch.cat([corners.amin(1), corners.amax(1)], 1)
    assert_close(iou(found[:1], found[None])[0], box_iou(found[:1], found)[0])


def test_the_class_of_a_row_picks_its_boxes_and_pixels():
    there = {
        "boxes": torch.tensor([[[0.0, 0, 1, 1], [2, 2, 4, 4]], [[0, 0, 2, 2], [NAN] * 4]]),
        "box_target": torch.tensor([[3, 1], [1, -1]]),
        "mask_target": torch.tensor([[[3, 1, -1]], [[1, 1, -1]]]),
    }
    found = of_class(there, torch.tensor([1, 3]))
    assert found["boxes"].isnan().all(2).tolist() == [[True, False], [True, True]]
    assert found["mask"].tolist() == [[[False, True, False]], [[False, False, False]]]


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
