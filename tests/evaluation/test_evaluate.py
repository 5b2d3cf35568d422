"""What the table of `evaluate` holds, and how many passes it costs."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from support.tally import Tally
from torch import Tensor, nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    Attribution,
    FakeCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomMap,
    XGradCAM,
    explain,
    normalize,
)
from interpretable_training.metrics import (
    ADCC,
    AOPC,
    ROAD,
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Insertion,
    InsertionDeletion,
    MaxSensitivity,
    evaluate,
)

CAMS = {"gradcam": GradCAM("3"), "layercam": LayerCAM("0"), "hirescam": HiResCAM("3")}
METRICS = {
    "ad": AverageDrop(),
    "ad_logit": AverageDrop(preset="torchcam"),
    "top": AverageDrop(topk=30),
    "ai": AverageIncrease(),
    "ag": AverageGain(),
    "add": AverageDropInDeletion(),
    "insertion": Insertion(steps=6),
    "deletion": Deletion(preset="ca_stream", steps=5, substrate="black"),
    "both": InsertionDeletion(steps=4, auc="mean"),
    "aopc": AOPC(patch=4, steps=3),
    "road": ROAD(percentages=(20, 60)),
    "coherency": Coherency(),
    "complexity": Complexity(),
    "adcc": ADCC(),
    "adcc_of_means": ADCC(average="dataset"),
    "sensitivity": MaxSensitivity(n=2),
    "raw_sensitivity": MaxSensitivity(n=2, raw=True),
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture
def table(network, images, target):
    return evaluate(network, CAMS, METRICS, (images, target), mean=MEAN, std=STD, resamples=50, progress=False)


def alone(metric, name, network, images, target, batch=2, **normalization):
    """What the metric computes when a user updates it by hand, batch after batch."""
    method = {**CAMS, "fakecam": FakeCAM(), "random": RandomMap()}[name]
    metric = metric.adapted(*normalization.values(), False)
    if getattr(metric, "attribution", 0) is None:
        metric.attribution = method
    for x, y in zip(images.split(batch), target.split(batch)):
        facts = {"model": network, "images": x, "saliency": normalize(method(network, x, y)), "target": y}
        metric.update(**metric._filter_kwargs(**facts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric, metric.compute()


@pytest.mark.parametrize("key", METRICS)
def test_the_table_holds_what_each_metric_computes_by_itself(table, network, images, target, key):
    for name in table.values:
        metric, computed = alone(METRICS[key], name, network, images, target, mean=MEAN, std=STD)
        cell = table[name, key]
        assert_close(torch.tensor(cell.mean), computed, rtol=1e-5, atol=1e-5)
        assert (cell.n, cell.n_invalid) == (int(metric.count), int(metric.n_invalid))
        assert cell.n_degenerate == int(metric.n_degenerate)
        if key != "adcc_of_means":
            assert_close(table.per_image(name, key).nanmean().item(), cell.mean)


def test_maps_are_explained_again_by_the_method_that_made_them_whatever_the_metric_says(network, images, target):
    options = {"resamples": 2, "progress": False}
    own = evaluate(network, CAMS, MaxSensitivity(n=2), (images, target), **options)
    other = evaluate(network, CAMS, MaxSensitivity(FakeCAM(), n=2), (images, target), **options)
    assert own.passports == other.passports
    assert own["gradcam", "max_sensitivity"] == other["gradcam", "max_sensitivity"]
    assert own["fakecam", "max_sensitivity"].mean == 0


def test_adcc_of_the_data_set_is_the_harmonic_mean_of_the_data_sets_means(table, network, images, target):
    again = evaluate(
        network,
        CAMS,
        [Coherency(), Complexity(), AverageDrop(space="normalized")],
        (images, target),
        resamples=5,
        progress=False,
    )
    for name in CAMS:
        terms = [
            again[name, "coherency"].mean,
            1 - again[name, "complexity"].mean,
            1 - again[name, "average_drop"].mean / 100,
        ]
        assert_close(table[name, "adcc_of_means"].mean, 3 / sum(1 / term for term in terms), rtol=1e-6, atol=0)


def test_classes_and_indices_are_those_of_the_rows(table, images, target, network):
    assert table.images.tolist() == list(range(5))
    assert table.classes.tolist() == target.tolist()
    for policy, pick in (("pred", Tensor.argmax), ("least", Tensor.argmin)):
        found = evaluate(network, CAMS, Complexity(), [images], policy, resamples=2, progress=False)
        assert found.classes.tolist() == pick(network(images), 1).tolist()


def test_with_a_target_of_pred_the_table_is_that_of_the_predicted_labels(network, images):
    chosen = network(images).argmax(1)
    a = evaluate(network, CAMS, METRICS, images.split(2), "pred", resamples=20, progress=False)
    b = evaluate(network, CAMS, METRICS, (images, chosen), resamples=20, progress=False)
    for key, cell in a.cells.items():
        assert_close(cell.mean, b[key].mean)


def test_the_mean_and_std_of_a_data_module_decide_what_black_is(network, images, target):
    class Data:
        mean, std = MEAN, STD

        def prepare_data(self):
            pass

        def setup(self, stage):
            assert stage == "test"

        def test_dataloader(self):
            return [(images, target)]

    options = {"resamples": 5, "progress": False}
    ours = evaluate(network, GradCAM(), AverageDrop(), Data(), split="test", **options)
    given = evaluate(network, GradCAM(), AverageDrop(), (images, target), mean=MEAN, std=STD, **options)
    without = evaluate(network, GradCAM(), AverageDrop(), (images, target), **options)
    assert ours["gradcam", "average_drop"] == given["gradcam", "average_drop"]
    assert ours.passports["average_drop"]["mask_mean"] == "0.4 0.5 0.6"
    assert without.passports["average_drop"]["mask_space"] == "normalized"
    assert not torch.equal(ours.values["gradcam"]["average_drop"], without.values["gradcam"]["average_drop"])


class Counted(nn.Module):
    """Counts the images that pass through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.sizes = Tally()

    @property
    def seen(self):
        return sum(self.sizes)

    def forward(self, x):
        self.sizes.append(len(x))
        return self.network(x)


@dataclass(frozen=True)
class Given(Attribution):
    """A map that costs no pass."""

    power: int = 1

    def attribute(self, prepared, images, target):
        return images.abs().mean(1) ** self.power


CONFIDENCE = [AverageDrop(), AverageIncrease(), AverageGain()]


@pytest.mark.parametrize("target", ["label", "pred", "least"])
@pytest.mark.parametrize(
    ("metrics", "shared", "each"),
    [
        ([Complexity()], 1, 0),
        (CONFIDENCE, 1, 1),
        ([*CONFIDENCE, AverageDropInDeletion()], 1, 2),
        ([*CONFIDENCE, ADCC(preset="thesis")], 1, 1),  # the method itself costs nothing
        ([Insertion(steps=8)], 2, 7),  # blurred images once, and steps 1..7
        ([Insertion(steps=8), Deletion(steps=8)], 3, 14),
        ([Insertion(steps=8), Deletion(steps=8), InsertionDeletion(steps=8)], 3, 14),
        ({"a": Insertion(steps=8), "b": Insertion(steps=8, auc="mean"), "c": Insertion(steps=8, score="logit")}, 2, 7),
        ([ROAD(percentages=(10, 50)), AOPC(patch=4, steps=3)], 1, 7),
        ({"a": ROAD(percentages=(10, 50)), "b": ROAD(percentages=(10, 50), score="accuracy")}, 1, 4),
    ],
    ids=["none", "AD AI AG", "and ADD", "ADCC", "insertion", "both", "all three", "rules", "ROAD AOPC", "ROAD twice"],
)
def test_every_pass_is_made_once(network, images, metrics, shared, each, target):
    labels = torch.tensor([0, 3, 1, 1, 2])
    model = Counted(network)
    methods = {"a": Given(1), "b": Given(2), "c": Given(3)}
    evaluate(model, methods, metrics, [(images, labels)], target, controls=False, resamples=2, progress=False)
    assert model.seen == len(images) * (shared + each * len(methods))


def test_cams_share_one_pass_whatever_their_number(network, images, target):
    def passes(*methods):
        model = Counted(network)
        named = dict(enumerate(methods))
        evaluate(model, named, CONFIDENCE, (images, target), controls=False, resamples=2, progress=False)
        return model.seen / len(images) - 1 - len(methods)  # without the clean and the masked images

    auto = [GradCAM("network.3"), GradCAMPlusPlus("network.0"), XGradCAM("network.3"), LayerCAM("network.3")]
    assert passes(auto[0]) == 1
    assert passes(*auto) == 1
    assert passes(*auto, RandomMap(), FakeCAM()) == 1
    assert passes(*auto, GradCAM("network.3", rule="guided")) == 2


def test_no_pass_is_larger_than_chunk_size_asks(network, images, target):
    model = Counted(network)
    loader = images.split(2), target.split(2)
    metrics = [Insertion(steps=90), AverageDrop(), ROAD(percentages=(10, 50))]
    evaluate(model, Given(), metrics, list(zip(*loader)), chunk_size=3, resamples=2, progress=False)
    assert max(model.sizes) == 3


def test_explanations_are_those_of_explain(network, images, target):
    """Complexity is the mean of the map, so that it tells them apart."""
    found = evaluate(network, CAMS, Complexity(), (images, target), controls=False, resamples=2, progress=False)
    for name, maps in explain(CAMS, network, images, target).items():
        assert_close(found.per_image(name, "complexity"), normalize(maps).mean((1, 2)))


def test_a_curve_is_the_sum_of_the_curves_of_its_images(network, images, target, curves):
    for split in (5, 2, 1):
        batches = list(zip(images.split(split), target.split(split)))
        found = evaluate(network, Given(), Insertion(steps=6), batches, resamples=2, progress=False)
        S = normalize(Given()(network, images, target))
        s = curves(Insertion(steps=6), network, images, S, target)["insertion"]
        n, total, squares = found.curves["given"]["insertion"]["insertion"]
        assert n.tolist() == [5.0] * s.shape[1]
        assert_close(total, s.sum(0))
        assert_close(squares, (s**2).sum(0))
