"""Inputs that are wrong: each is refused in a sentence before anything is computed, and no state changes."""

import pytest
import torch
from support.every_metric import MAKE, WITH_MAPS, WITHOUT_MAPS, WITHOUT_MODEL, batch, sums
from torch import nn

from interpretable_training.metrics import (
    ADCC,
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    EnergyPointingGame,
    Insertion,
    LocalizationError,
    OfficialMetric,
    PxAP,
    SanityTable,
    UnitIoU,
    connected_components,
    measure_units,
    memorize,
    unit_thresholds,
)
from interpretable_training.metrics.core.base import resolve
from interpretable_training.metrics.core.inputs import check_inputs
from interpretable_training.metrics.sanity.data_randomization import DataRandomization

RESCORING = [name for name in MAKE if name not in WITHOUT_MODEL]
LOCALIZATION = [name for name in MAKE if name in WITHOUT_MODEL and name != "complexity"]
NAN, INF = torch.nan, torch.inf
P = torch.tensor([0.25, 0.5])
S = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
MASK = S > 0.5
A = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
QUANTIZED = torch.quantize_per_tensor(P, 0.1, 0, torch.quint8)


def refused(metric, facts, error=(TypeError, ValueError), message="expected"):
    before = sums(metric)
    with pytest.raises(error, match=message):
        metric.update(**facts)
    assert all(torch.equal(value, getattr(metric, name)) for name, value in before.items())


@pytest.mark.parametrize("name", MAKE)
def test_unknown_keywords_are_refused_with_the_closest(network, images, saliency, target, name):
    metric = MAKE[name]()
    facts = batch(metric, network, images, saliency, target)
    for known in facts:
        with pytest.raises(TypeError, match=rf"got {known}d=; did you mean {known}=\?"):
            metric.measure(**facts, **{f"{known}d": None})
    with pytest.raises(TypeError, match="got qqqq=; leave it out"):
        metric.measure(**facts, qqqq=1)


def test_a_misspelt_score_is_not_taken_for_none():
    with pytest.raises(TypeError, match=r"got prob_maskd=; did you mean prob_masked=\?"):
        AverageDrop().measure(prob=P, prob_maskd=P)


@pytest.mark.parametrize("name", WITH_MAPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda S: S.to_sparse(), "saliency as a dense tensor of numbers, got a sparse"),
        (lambda S: S.to(torch.complex64), "floating point saliency .* got torch.complex64"),
        (lambda S: S > 0.5, "floating point saliency .* got torch.bool"),
        (lambda S: (255 * S).byte(), "floating point saliency .* got torch.uint8"),
        (lambda S: S.to("meta"), "saliency as a dense tensor of numbers, got a meta"),
        (lambda S: S.numpy(), "saliency .* as a tensor, got ndarray"),
        (lambda S: S[:, None], "expected saliency"),
    ],
)
def test_maps_of_other_types_are_refused(network, images, saliency, target, name, change, message):
    metric = MAKE[name]()
    refused(metric, batch(metric, network, images, change(saliency), target), message=message)


@pytest.mark.parametrize("name", RESCORING)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to_sparse(), "images as a dense tensor of numbers, got a sparse"),
        (lambda x: torch.nested.nested_tensor(list(x)), "images as a dense tensor of numbers, got a nested"),
        (lambda x: x.to("meta"), "images as a dense tensor of numbers, got a meta"),
        (lambda x: x.to(torch.complex64), "floating point images .* got torch.complex64"),
        (lambda x: x[:, :0], r"at least one image with pixels, got shape \(5, 0, 12, 8\)"),
        (lambda x: x[:0], "got an empty batch"),
        (lambda x: x[0, 0], "images .* got shape"),
        (lambda x: x.tolist(), "images .* got list"),
    ],
)
def test_images_of_other_types_are_refused(network, images, saliency, target, name, change, message):
    metric = MAKE[name]()
    facts = batch(metric, network, images, saliency, target)
    refused(metric, {**facts, "images": change(images)}, message=message)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (P[:, None], r"expected prob \(B,\), one score per image, got shape \(2, 1\)"),
        (torch.tensor([0, 1]), r"floating point prob .* got torch.int64"),
        (P.to_sparse(), "prob as a dense tensor of numbers, got a sparse"),
        (QUANTIZED, "prob as a dense tensor of numbers, got a quantized"),
        (P.to("meta"), "prob as a dense tensor of numbers, got a meta"),
        (P + 1, r"expected prob as probabilities in \[0, 1\], got 1.25 to 1.5"),
        (torch.rand(3), "expected as many"),
        ("x", r"expected prob \(B,\), one score per image, got str"),
    ],
)
@pytest.mark.parametrize("metric", [AverageDrop, AverageIncrease, AverageGain, AverageDropInDeletion, ADCC])
def test_scores_of_other_types_or_lengths_are_refused(metric, scores, message):
    other = "prob_deleted" if metric is AverageDropInDeletion else "prob_masked"
    facts = {"saliency": S, "saliency_masked": S} if metric is ADCC else {}
    refused(metric(), {**facts, "prob": scores, other: P}, message=message)
    refused(metric(), {**facts, "prob": P, other: scores}, message=message.replace("prob", other, 1))


@pytest.mark.parametrize("again", [S[:, :4], S[:1], S.tolist(), (9 * S).long(), S * INF, S.to_sparse()])
def test_maps_of_masked_images_that_do_not_fit_are_refused(again):
    refused(Coherency(), {"saliency": S, "saliency_masked": again}, message="expected .*saliency_masked")
    refused(ADCC(), {"saliency": S, "saliency_masked": again, "prob": P, "prob_masked": P}, message="saliency_masked")


@pytest.mark.parametrize("name", LOCALIZATION)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.float() * NAN, "expected mask with 0 outside .* got nan"),
        (-MASK.float(), "expected mask with 0 outside .* got -1 to"),
        (MASK / MASK.float(), "expected mask with 0 outside"),  # NaN outside
        (MASK.to(torch.complex64), "expected mask of booleans or numbers"),
        (MASK.float().to_sparse(), "mask as a dense tensor of numbers"),
        (MASK[:1], r"expected mask \(2, 6, 6\), one per map"),
        (MASK[:, :4], r"expected mask \(2, 6, 6\), one per map"),
    ],
)
def test_masks_of_no_pixels_are_refused(name, mask, message):
    refused(MAKE[name](), {"saliency": S, "mask": mask}, message=message)


@pytest.mark.parametrize("name", ["shortcut_mask", "ignore_mask"])
def test_masks_are_checked_though_none_is_asked_for(name):
    refused(PxAP(), {"saliency": S, "mask": MASK, name: -MASK.float()}, message=f"expected {name} with 0 outside")


@pytest.mark.parametrize("name", LOCALIZATION)
@pytest.mark.parametrize(
    "box",
    [[4.0, 1, 1, 4], [1.0, 4, 4, 1], [0.0, 0, INF, 4], [-INF, 0, 1, 1], [1.0, 1, NAN, 4]],
    ids=["inverted x", "inverted y", "infinite", "minus infinity", "half"],
)
def test_boxes_of_no_area_are_refused(name, box):
    wrong = torch.tensor([[[1.0, 1, 3, 3], [NAN] * 4], [box, [1, 1, 2, 2]]])
    message = "expected boxes x1, y1, x2, y2 of finite numbers"
    refused(MAKE[name](), {"saliency": S, "boxes": wrong}, message=message)
    refused(MAKE[name](), {"saliency": S, "boxes": list(wrong)}, message=message)


@pytest.mark.parametrize("boxes", ["x", 3, ["a", "b"], torch.ones(2, 1, 4) > 0, torch.ones(2, 1, 4).to_sparse()])
def test_what_are_no_boxes_is_refused(boxes):
    refused(LocalizationError(), {"saliency": S, "boxes": boxes}, error=TypeError, message="expected boxes")


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        (torch.tensor([0.5, 1]), "correct of zeros and ones, got"),
        (torch.tensor([2, 1]), "correct of zeros and ones, got"),
        (torch.ones(3), r"expected correct \(2,\), whether each image .* got \(3,\)"),
        ("x", r"expected correct \(2,\) of zeros and ones, got 'x'"),
        (object(), "of zeros and ones, got"),
    ],
)
def test_what_was_classified_correctly_is_zeros_and_ones(correct, message):
    refused(OfficialMetric(), {"saliency": S, "mask": MASK, "correct": correct}, message=message)


def test_a_class_for_other_images_is_refused_though_nothing_is_scored():
    facts = {"saliency": S, "mask": MASK, "correct": torch.ones(2)}
    refused(OfficialMetric(), {**facts, "target": torch.tensor([0, 1, 2])}, message="one target per image")
    refused(AverageDrop(), {"prob": P, "prob_masked": P, "model": "resnet"}, message="torch.nn.Module as model")


def test_tensors_on_two_devices_are_refused():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 1)

    with pytest.raises(ValueError, match="expected prob_masked on the device of prob, cpu, got cuda:1; move one"):
        check_inputs({"prob": P, "prob_masked": P.clone().as_subclass(Elsewhere)})


@pytest.mark.parametrize("name", WITH_MAPS)
def test_a_failed_call_of_a_metric_keeps_its_state(network, images, saliency, target, name):
    """Torchmetrics resets the state in `forward` before it updates."""
    metric = MAKE[name]()
    metric(**batch(metric, network, images, saliency, target))
    before, number = sums(metric), metric.compute()
    with pytest.raises(ValueError, match="expected saliency in"):
        metric(**batch(metric, network, images, saliency + 3, target))
    assert all(torch.equal(value, getattr(metric, state)) for state, value in before.items())
    assert torch.equal(metric.compute(), number)
    assert metric._to_sync
    assert metric.update_count == 1


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (A[0], r"expected activations \(B, K, h, w\)"),
        (A.long(), "floating point activations"),
        (A * NAN, "activations of finite numbers"),
        (A[:0], "activations .* of at least one image"),
        ("x", "expected activations"),
        (A.to_sparse(), "activations as a dense tensor"),
    ],
)
def test_activations_that_are_none_are_refused(activations, message):
    refused(UnitIoU(torch.zeros(3)), {"A": activations, "mask": MASK}, message=message)
    with pytest.raises((TypeError, ValueError), match=message):
        unit_thresholds([activations])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"mask": "x"}, "expected mask .* as a tensor, got str"),
        ({"mask": -MASK.float()}, "expected mask with 0 outside"),
        ({"mask": MASK, "target": "x"}, "expected class indices"),
        ({"mask": MASK, "target": torch.tensor([0.0, 1.0])}, "expected class indices"),
        ({"mask": MASK, "target": torch.tensor([0, 5])}, "expected target .* from 0 to 1"),
        ({"mask": MASK, "target": torch.tensor([0, 1, 0])}, "one target per image"),
    ],
)
def test_concepts_that_do_not_fit_change_no_unit(facts, message):
    refused(UnitIoU(torch.zeros(3), 2), {"A": A, **facts}, message=message)


@pytest.mark.parametrize("threshold", [NAN, INF, "x", None, torch.zeros(2, 2), torch.zeros(0)])
def test_thresholds_of_units_are_finite_numbers(threshold):
    with pytest.raises(ValueError, match="expected threshold as a finite number, or one per unit"):
        UnitIoU(threshold)


@pytest.mark.parametrize("wrong", [0, 1.5, "x", True])
def test_a_number_of_concepts_is_a_whole_number(wrong):
    with pytest.raises(ValueError, match="expected num_concepts as a whole number of at least 1"):
        UnitIoU(0.5, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "expected share"),
        ({"share": "x"}, "expected share"),
        ({"max_images": "x"}, "expected max_images"),
        ({"seed": 1.5}, "expected seed"),
        ({"region": "zz"}, "expected region to be one of"),
        ({"layer": None}, "expected layer as 'auto' or the dotted name"),
        ({"model": "resnet"}, "expected a torch.nn.Module as model"),
    ],
)
def test_wrong_options_end_before_units_are_measured(network, options, message):
    def never():
        raise AssertionError
        yield

    with pytest.raises((TypeError, ValueError), match=message):
        measure_units(**{"model": network, "data": never(), **options})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"images": "x"}, "expected floating point images"),
        ({"images": torch.rand(2, 4) * NAN}, "images of finite numbers"),
        ({"target": torch.tensor([0, 1, 0])}, r"expected target \(2,\) of class numbers"),
        ({"target": torch.tensor([0, -1])}, "class numbers from 0, int64, got .* lowest -1"),
        ({"target": torch.tensor([0, 9])}, "target from 0 to 1"),
        ({"accuracy": 2}, "expected accuracy"),
        ({"max_epochs": 0}, "expected max_epochs"),
        ({"batch_size": "x"}, "expected batch_size"),
        ({"learning_rate": -1}, "expected learning_rate"),
        ({"network": "resnet"}, "expected a torch.nn.Module as model"),
    ],
)
def test_what_cannot_be_memorized_is_refused(facts, message):
    good = {"network": nn.Linear(4, 2), "images": torch.rand(2, 4), "target": torch.tensor([0, 1])}
    with pytest.raises((TypeError, ValueError), match=message):
        memorize(**{**good, **facts})


def test_other_arguments_of_public_functions_are_refused():
    with pytest.raises(ValueError, match=r"expected labels \(N,\) as a tensor, got list"):
        DataRandomization().shuffled([0, 1])
    with pytest.raises(TypeError, match="expected checks as a list, got NoneType"):
        SanityTable(None)
    with pytest.raises(TypeError, match="expected what the checks return, got str"):
        SanityTable(["x"])
    with pytest.raises(ValueError, match=r"expected mask \(N, H, W\) as a tensor, got shape \(6, 6\)"):
        connected_components(MASK[0])


def test_inputs_that_are_only_unusual_are_taken():
    """Masks of other numbers, boxes outside of the image, scores that are not finite, and maps that need a gradient."""
    hit = EnergyPointingGame().measure(saliency=S, mask=MASK)
    assert torch.equal(EnergyPointingGame().measure(saliency=S.clone().requires_grad_(), mask=2 * MASK.byte()), hit)
    assert LocalizationError().measure(saliency=S, boxes=torch.tensor([[[-3.0, 2, 90, 99]]] * 2)).isfinite().all()
    assert AverageDrop().measure(prob=P, prob_masked=torch.tensor([INF, 0.25])).isnan().tolist() == [True, False]
    assert Complexity().measure(saliency=torch.rand(2, 9)).shape == (2,)
    assert OfficialMetric().measure(saliency=S, mask=MASK, correct=[True, False]).shape == (2,)


@pytest.mark.parametrize("name", WITH_MAPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda S: S + 0.5, r"expected saliency in \[0, 1\], got .*; pass normalize\(saliency\)"),
        (lambda S: -S, r"expected saliency in \[0, 1\]"),
        (lambda S: S * torch.inf, r"expected saliency in \[0, 1\]"),
    ],
)
def test_maps_outside_the_unit_interval(network, images, saliency, target, name, change, message):
    metric = MAKE[name]()
    S = change(saliency.clamp(min=0.1))
    with pytest.raises(ValueError, match=message):
        metric.update(**batch(metric, network, images, S, target))
    assert not metric.count


@pytest.mark.parametrize("name", [name for name in RESCORING if name in WITH_MAPS])
@pytest.mark.parametrize(
    "change", [lambda S: S[:, :6, :4], lambda S: S[:2], lambda S: S[:, None], lambda S: S.mT, lambda S: S[:1]]
)
def test_maps_of_another_resolution_or_number(network, images, saliency, target, name, change):
    metric = MAKE[name]()
    with pytest.raises(ValueError, match=r"expected saliency \(5, 12, 8\), one map per image at its resolution, got"):
        metric.update(**batch(metric, network, images, change(saliency), target))


@pytest.mark.parametrize("saliency", [torch.rand(4), torch.tensor(0.5), [[0.5]]])
def test_what_is_no_map(saliency):
    with pytest.raises(ValueError, match=r"expected saliency \(B, H, W\) as a tensor, got"):
        Complexity().update(saliency)


@pytest.mark.parametrize("name", RESCORING)
@pytest.mark.parametrize("missing", ["model", "images", "saliency", "target"])
def test_what_is_missing_is_named(network, images, saliency, target, name, missing):
    if missing == "saliency" and name in WITHOUT_MAPS:
        return
    metric = MAKE[name]()
    facts = batch(metric, network, images, saliency, target)
    with pytest.raises(ValueError, match=f"expected {missing}= among what update receives, got none; pass"):
        metric.update(**{key: value for key, value in facts.items() if key != missing})


@pytest.mark.parametrize("metric", [AverageDrop(), Deletion(3)], ids=["drop", "deletion"])
@pytest.mark.parametrize("several", [torch.zeros(5, 2).long(), "topk:2"], ids=["tensor", "topk"])
def test_several_classes_per_image(network, images, saliency, metric, several):
    with pytest.raises(ValueError, match=r"one (class|target|score) per image"):
        metric.update(model=network, images=images, saliency=saliency, target=several)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (4, ValueError, "target from 0 to"),
        (-1, ValueError, "target from 0 to"),
        ("label", ValueError, "pass the labels themselves"),
        ("predicted", ValueError, "expected target None, 'pred'"),
        (torch.zeros(5), TypeError, "class indices"),
        (torch.zeros(4).long(), ValueError, "one target per image"),
    ],
)
@pytest.mark.parametrize("name", ["average_drop", "insertion", "coherency"])
def test_targets_that_do_not_exist(network, images, saliency, name, target, error, message):
    metric = MAKE[name]()
    with pytest.raises(error, match=message):
        metric.update(**batch(metric, network, images, saliency, target))


def test_targets_may_be_named_given_or_computed(network, images, saliency):
    with torch.no_grad():
        y = network(images)
    facts = {"model": network, "images": images, "saliency": saliency}
    for metric in (AverageDrop(), Insertion(4)):
        predicted = metric.measure(**facts, target="pred")
        assert torch.equal(predicted, metric.measure(**facts, target=y.argmax(1)))
        assert torch.equal(predicted, metric.measure(**facts, target=y.argmax(1).tolist()))
        least = metric.measure(**facts, target="least")
        assert torch.equal(least, metric.measure(**facts, target=y.argmin(1)))
        assert torch.equal(metric.measure(**facts, target=2), metric.measure(**facts, target=torch.full((5,), 2)))


def test_the_predicted_class_is_that_of_the_clean_image(function):
    """It is class 1 at first and class 0 when all is hidden; class 1 is followed."""
    model = function(lambda z: torch.stack([0 * z.mean((1, 2, 3)) + 0.25, z.mean((1, 2, 3))], 1))
    facts = {"model": model, "images": torch.ones(1, 1, 4, 4).double(), "saliency": torch.rand(1, 4, 4)}
    assert Deletion(4, score="logit").measure(**facts, target="pred").item() == pytest.approx(50, abs=1e-9)


def test_a_callable_target_is_the_score(network, images, saliency):
    def margin(y):
        return y[:, 0] - y[:, 1]

    with torch.no_grad():
        s = [margin(network(x)) for x in (images, images * saliency[:, None])]
    metric = AverageDrop(score="logit", relative=False)
    values = metric.measure(model=network, images=images, saliency=saliency, target=margin)
    torch.testing.assert_close(values, 100 * (s[0] - s[1]).relu(), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="one score per image"):
        metric.update(model=network, images=images, saliency=saliency, target=lambda y: y)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((torch.rand(3, 2), torch.rand(3, 2)), r"expected prob \(B,\), one score per image, got shape \(3, 2\)"),
        ((torch.tensor(0.5), torch.tensor(0.5)), r"expected prob \(B,\), one score per image, got shape \(\)"),
        ((torch.rand(3), torch.rand(3, 1)), r"expected prob_masked \(B,\)"),
        (([0.5], torch.rand(1)), r"expected prob \(B,\), one score per image, got list"),
        ((torch.tensor([1.5]), torch.tensor([0.5])), r"expected prob as probabilities in \[0, 1\], got 1.5"),
        ((torch.tensor([0.5]), torch.tensor([-2.0])), r"expected prob_masked as probabilities in \[0, 1\], got -2"),
        ((torch.rand(3), torch.rand(2)), "one score per image|same|as many"),
        ((torch.rand(3), torch.rand(1)), "one score per image|same|as many"),
    ],
)
@pytest.mark.parametrize("metric", [AverageDrop, AverageGain])
def test_scores_of_the_wrong_shape_or_range(metric, scores, message):
    metric = metric()
    with pytest.raises(ValueError, match=message):
        metric.update(*scores)
    assert not metric.count


def test_given_scores_must_be_as_many_as_the_maps(network, images, saliency, target):
    with pytest.raises(ValueError, match=r"one score per image|same|as many"):
        AverageDrop().update(prob=torch.rand(1), model=network, images=images, saliency=saliency, target=target)


def test_what_is_no_image(network, saliency):
    with pytest.raises(TypeError, match="floating point images"):
        Deletion(3).update(network, torch.zeros(5, 3, 12, 8).byte(), saliency, 0)
    with pytest.raises(ValueError, match="got an empty batch"):
        Deletion(3).update(network, torch.zeros(0, 3, 12, 8), saliency[:0], 0)
    with pytest.raises(TypeError, match=r"torch.nn.Module as model"):
        Deletion(3).update("resnet", torch.zeros(5, 3, 12, 8), saliency, 0)


def test_an_empty_batch_of_scores_adds_nothing():
    metric = AverageDrop()
    metric.update(torch.zeros(0), torch.zeros(0))
    metric.update(torch.tensor([0.5]), torch.tensor([0.25]))
    assert metric.compute().item() == 50


def test_an_update_that_fails_changes_nothing(network, images, saliency, target):
    for make in MAKE.values():
        metric = make()
        metric.update(**batch(metric, network, images, saliency, target))
        before = metric.total.clone(), metric.count.clone()
        with pytest.raises(ValueError, match="expected"):
            metric.update(**batch(metric, network, images, saliency + 3, target + 9))
        assert torch.equal(metric.total, before[0])
        assert torch.equal(metric.count, before[1])


def test_unknown_presets_are_listed():
    with pytest.raises(ValueError, match=r"one of \['a', 'b'\], got 'c'"):
        resolve({"a": {}, "b": {}}, "c")
