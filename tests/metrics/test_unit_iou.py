"""Units against concepts: numbers by hand."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import UnitIoU, unit_thresholds


def areas(*columns, height=2, width=8):
    """Masks (1, K, height, width) that are 1 in the given columns."""
    M = torch.zeros(1, len(columns), height, width)
    for k, (start, stop) in enumerate(columns):
        M[0, k, :, start:stop] = 1
    return M


def test_equal_disjoint_and_half():
    A, L = areas((0, 4), (4, 8), (2, 6)), areas((0, 4))
    metric = UnitIoU(torch.full((3,), 0.5))
    metric.update(A, L)
    assert_close(metric.iou(), torch.tensor([[1.0], [0.0], [1 / 3]]))
    assert metric.compute().item() == pytest.approx(4 / 9)
    assert metric.detectors().tolist() == [0, -1, 0]


def test_sums_come_before_the_division():
    """IoUs of 1 and 0 with equal areas: 8 / (8 + 16), not their mean."""
    metric = UnitIoU(0.5)
    metric.update(areas((0, 4)), areas((0, 4)))
    metric.update(areas((0, 4)), areas((4, 8)))
    assert metric.iou().item() == pytest.approx(1 / 3)
    whole = UnitIoU(0.5)
    whole.update(torch.cat([areas((0, 4))] * 2), torch.cat([areas((0, 4)), areas((4, 8))]))
    assert_close(whole.iou(), metric.iou())


def test_images_without_annotations_do_not_count():
    metric = UnitIoU(0.5)
    metric.update(torch.cat([areas((0, 4))] * 2), torch.cat([areas((0, 4)), areas((0, 0))]))
    assert metric.iou().item() == 1


def test_the_target_names_the_concept_of_a_mask():
    """The unit is on in both images: of each concept it covers all, and as much beside it."""
    metric = UnitIoU(0.5, num_concepts=2)
    metric.update(torch.cat([areas((0, 4))] * 2), torch.cat([areas((0, 4))] * 2)[:, 0], torch.tensor([0, 1]))
    assert_close(metric.iou(), torch.tensor([[0.5, 0.5]]))
    metric = UnitIoU(torch.full((2,), 0.5), num_concepts=2)
    metric.update(areas((0, 4), (4, 8)), areas((4, 8), (0, 4)))
    assert metric.detectors().tolist() == [1, 0]
    assert metric.compute().item() == 1


def test_activations_are_enlarged_before_the_threshold():
    """Of two cells 0 and 1, seen at four pixels, the last two are above a half."""
    metric = UnitIoU(0.5)
    metric.update(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]))
    assert metric.iou().item() == 1


def test_thresholds_leave_the_share_above():
    A = torch.rand(10, 3, 10, 20, generator=torch.Generator().manual_seed(0))
    T = unit_thresholds(A.split(4))
    assert (T.view(1, 3, 1, 1) < A).sum((0, 2, 3)).tolist() == [10, 10, 10]


def test_two_processes_sum_up():
    a, b, both = UnitIoU(0.5), UnitIoU(0.5), UnitIoU(0.5)
    for metric, columns in ((a, (0, 4)), (b, (2, 6))):
        metric.update(areas((0, 4)), areas(columns))
        both.update(areas((0, 4)), areas(columns))
    a.merge_state(b)
    assert_close(a.compute(), both.compute())
    assert a.passport()["metric"] == "UnitIoU"


def test_what_does_not_fit_units():
    with pytest.raises(ValueError, match="expected thresholds of 1 units, got 2"):
        UnitIoU(torch.zeros(2)).update(areas((0, 4)), areas((0, 4)))
    with pytest.raises(ValueError, match="expected target= with the concept of each mask"):
        UnitIoU(0.5, num_concepts=2).update(areas((0, 4)), areas((0, 4))[:, 0])
    with pytest.raises(ValueError, match=r"expected mask \(1, H, W\) or \(1, 1, H, W\)"):
        UnitIoU(0.5).update(areas((0, 4)), areas((0, 4), (0, 4)))
