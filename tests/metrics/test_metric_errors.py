"""What is wrong with an update is said where it is given: expected, got, what to do."""

import pytest
import torch
from support.every_metric import MAKE, WITHOUT_MODEL, batch

from interpretable_training.metrics import AverageDrop, AverageGain, Complexity, Deletion, Insertion
from interpretable_training.metrics.core.base import resolve

RESCORING = [name for name in MAKE if name not in WITHOUT_MODEL]


@pytest.mark.parametrize("name", MAKE)
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


@pytest.mark.parametrize("name", RESCORING)
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
            metric.update(**batch(metric, network, images, saliency + 3, target))
        assert torch.equal(metric.total, before[0])
        assert torch.equal(metric.count, before[1])


def test_unknown_presets_are_listed():
    with pytest.raises(ValueError, match=r"one of \['a', 'b'\], got 'c'"):
        resolve({"a": {}, "b": {}}, "c")
