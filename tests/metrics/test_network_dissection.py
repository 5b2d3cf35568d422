"""Units against concepts: numbers by hand."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import InterpretabilityMetrics
from interpretable_training.metrics import UnitIoU, evaluate, measure_units, unit_thresholds


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


SHARE = 1 / 8  # of all places: as many as the three objects fill together


@pytest.fixture
def colors():
    """Units 0 to 2 are on where the image has their color, unit 3 on any color."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.cat([torch.eye(3), torch.ones(1, 3)])[:, :, None, None])
    return network


@pytest.fixture
def batch():
    """An object of 2 x 4 pixels in an image of 8 x 8 each, in the color of its class."""
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, 0:2, 0:4] = mask[1, 3:5, 2:6] = mask[2, 6:8, 4:8] = True
    images = torch.zeros(3, 3, 8, 8)
    images[torch.arange(3), torch.arange(3)] = mask.float()
    boxes = torch.tensor([[[0.0, 0, 4, 2]], [[2, 3, 6, 5]], [[4, 6, 8, 8]]])
    return {"image": images, "target": torch.arange(3), "mask": mask, "boxes": boxes}


class Items(Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.batch.items()}


@pytest.mark.parametrize("without", ["mask", "boxes", "neither"])
def test_each_unit_sees_its_color_and_one_sees_all(colors, batch, without):
    """Unit 3 covers 24 pixels, 8 of which are of each class: IoU 1/3; the mean of the best is (3 + 1/3) / 4."""
    batch.pop(without, None)
    results = measure_units(colors, [batch], "0", share=SHARE)
    assert_close(results.iou(), torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)]))
    assert results.compute().item() == pytest.approx(5 / 6)
    assert results.detectors().tolist()[:3] == [0, 1, 2]
    assert results.threshold.tolist() == [0, 0, 0, 0]


def test_with_a_smaller_share_the_last_unit_is_never_on(colors, batch):
    """8 of 192 places: the unit that is on at 24 of them has its highest value as the threshold."""
    results = measure_units(colors, [batch], "0", share=8 / 192)
    assert_close(results.iou(), torch.cat([torch.eye(3), torch.zeros(1, 3)]))


def test_any_source_and_any_batches_give_the_same(colors, batch):
    whole = measure_units(colors, [batch], "0", share=SHARE)
    for size in (1, 2):
        loader = DataLoader(Items(batch), batch_size=size, shuffle=True)
        assert_close(measure_units(colors, loader, "0", share=SHARE).iou(), whole.iou())
    ragged = {**batch, "boxes": list(batch["boxes"]), "mask": None}
    assert_close(measure_units(colors, [ragged], "0", share=SHARE).iou(), whole.iou())
    assert measure_units(colors, Items(batch), "0", share=SHARE, max_images=2).concept_area.count_nonzero() == 2


@pytest.mark.parametrize("form", ["boxes", "ragged", "pixels"])
def test_images_with_several_classes_have_an_object_of_each(colors, batch, form):
    """The third object is put beside the first: a unit's area in an image counts once, however many classes it has."""
    images = torch.stack([batch["image"][0] + batch["image"][2], batch["image"][1]])
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    nothing = torch.full((4,), torch.nan)
    boxes = [torch.stack([batch["boxes"][0, 0], batch["boxes"][2, 0]]), torch.stack([batch["boxes"][1, 0], nothing])]
    names = [torch.tensor([0, 2]), torch.tensor([1, -1])]
    if form == "pixels":
        number = torch.full((2, 8, 8), -1)
        number[0][batch["mask"][0]], number[0][batch["mask"][2]], number[1][batch["mask"][1]] = 0, 2, 1
        there = {"mask": number >= 0, "mask_target": number}
    elif form == "boxes":
        there = {"boxes": torch.stack(boxes), "box_target": torch.stack(names)}
    else:
        there = {"boxes": [boxes[0], boxes[1][:1]], "box_target": [names[0], names[1][:1]]}
    results = measure_units(colors, [{"image": images, "target": target, **there}], "0", share=24 / 128)
    assert_close(results.iou(), torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)]))
    assert results.unit_area.flatten().tolist() == [8, 8, 8, 24]


def test_the_network_and_the_generators_stay_as_they_are(colors, batch):
    colors.train()
    colors[0].weight.requires_grad_(False)
    before, state = {k: v.clone() for k, v in colors.state_dict().items()}, torch.get_rng_state()
    measure_units(colors, DataLoader(Items(batch), batch_size=2, shuffle=True), "1", share=SHARE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(colors.state_dict()[k], v) for k, v in before.items())
    assert [module.training for module in colors] == [True] * 5
    assert not colors[0].weight.requires_grad
    assert not any(module._forward_hooks for module in colors.modules())


def test_the_last_layer_with_a_grid_is_taken_by_default(colors, batch):
    results = measure_units(colors.eval(), [batch], share=SHARE)
    assert_close(results.iou(), measure_units(colors, [batch], "1", share=SHARE).iou())


def test_one_threshold_serves_all_units():
    A, L = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    A[:, 0, :2] = A[:, 1, 2:] = L[:, :2] = 1
    metric = UnitIoU(0.5)
    for half in (A[:1], L[:1]), (A[1:], L[1:]):
        metric.update(*half)
    assert metric.iou().flatten().tolist() == [1, 0, 0]


def test_activations_of_half_precision_are_compared_in_full():
    """0.3 is 0.30078 as bfloat16: above a threshold of 0.3, which would be rounded to the same."""
    A = torch.full((1, 1, 4, 4), 0.3, dtype=torch.bfloat16)
    metric = UnitIoU(0.3)
    metric.update(A, torch.ones(1, 4, 4))
    assert metric.compute() == 1


def test_other_thresholds_are_another_metric():
    ours, theirs = UnitIoU(torch.linspace(0, 1, 12)), UnitIoU(torch.linspace(0, 1, 12).where(torch.arange(12) < 9, 2.0))
    assert ours.passport() != theirs.passport()
    assert not torch.equal(ours.facts, theirs.facts)
    with pytest.raises(ValueError, match="expected numbers with the same passport"):
        ours.merge_state(theirs)


def test_what_cannot_be_measured_is_said(colors, batch):
    for given, message in (
        ({**batch, "mask": None, "boxes": None}, "expected 'mask' or 'boxes' in the batch for UnitIoU, got none; make"),
        ({"image": batch["image"], "mask": batch["mask"]}, "expected batches with a target, which is the concept"),
        ({**batch, "target": torch.rand(3)}, r"expected targets \(3,\) of class numbers or \(3, N\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            measure_units(colors, [given], "0", share=SHARE)
    with pytest.raises(ValueError, match=r"expected at least 200 places, of which a share of 0\.005 is one, got 192"):
        measure_units(colors, [batch], "0")
    with pytest.raises(ValueError, match="expected share between 0 and 1, got 1"):
        measure_units(colors, [batch], "0", share=1.0)
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        measure_units(colors, [], "0")
    with pytest.raises(ValueError, match=r"expected target \(1,\) with numbers from 0 to 1, got \[2\]"):
        UnitIoU(0.5, num_concepts=2).update(torch.rand(1, 1, 4, 4), torch.ones(1, 4, 4), torch.tensor([2]))


@pytest.mark.parametrize("metrics", [[UnitIoU(0.5)], {"units": UnitIoU(0.5)}, UnitIoU(0.5), UnitIoU])
def test_who_measures_maps_refuses_units_and_says_what_to_call(colors, batch, metrics):
    with pytest.raises(TypeError, match=r"UnitIoU, which measures the units of a layer; call measure_units\(model"):
        evaluate(colors, GradCAM("0"), metrics, [batch], progress=False)
    with pytest.raises(TypeError, match=r"call measure_units\(model, data, layer\) instead"):
        InterpretabilityMetrics(metrics=metrics)


def test_rounding_does_not_cost_a_place():
    """0.29 of 100 is 28.999999999999996 in floating numbers."""
    A = torch.arange(100.0).view(1, 1, 10, 10)
    assert (unit_thresholds([A], share=0.29) < A).sum() == 29
