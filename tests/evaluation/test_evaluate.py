"""What the table of `evaluate` holds, and how many passes it costs."""

import math
import warnings
from dataclasses import dataclass

import pytest
import torch
import torchmetrics
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
    ARCC,
    ROAD,
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Infidelity,
    Insertion,
    InsertionDeletion,
    MaxSensitivity,
    SingleDeletion,
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


def test_maps_are_explained_again_by_the_method_that_made_them(network, images, target):
    options = {"resamples": 2, "progress": False}
    own = evaluate(network, CAMS, MaxSensitivity(n=2), (images, target), **options)
    other = evaluate(network, CAMS, MaxSensitivity(FakeCAM(), n=2), (images, target), **options)
    assert own.passports == other.passports
    assert repr(own["gradcam", "max_sensitivity"]) == repr(other["gradcam", "max_sensitivity"])  # it holds a NaN
    assert own["fakecam", "max_sensitivity"].mean == 0


def test_adcc_of_the_data_set_is_the_harmonic_mean_of_means(table, network, images, target):
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


def test_target_pred_gives_the_table_of_predicted_labels(network, images):
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
    assert repr(ours["gradcam", "average_drop"]) == repr(given["gradcam", "average_drop"])  # it holds a NaN
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
        ([ROAD(percentages=(10, 50)), ARCC(percentages=(10, 50))], 1, 4),
        ({"a": SingleDeletion(2), "b": SingleDeletion(2, score="prob"), "c": Infidelity(n=3)}, 8, 0),  # of all maps
        ({"a": SingleDeletion(2), "b": SingleDeletion(3), "c": SingleDeletion(2, substrate="min")}, 18, 0),
    ],
    ids=[
        "none",
        "AD AI AG",
        "and ADD",
        "ADCC",
        "insertion",
        "both",
        "all three",
        "rules",
        "ROAD AOPC",
        "ROAD twice",
        "ROAD ARCC",
        "regions",
        "other regions",
    ],
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


OPTIONS = {"resamples": 10, "progress": False}


@pytest.fixture
def run(network, images, target):
    def measured(methods=None, metrics=None, model=None, data=None, **options):
        given = [GradCAM("3") if methods is None else methods, Complexity() if metrics is None else metrics]
        return evaluate(model or network, *given, data or (images, target), **{**OPTIONS, **options})

    return measured


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"methods": []}, ValueError, "expected at least one method"),
        ({"methods": {}, "controls": False}, ValueError, "expected at least one method"),
        ({"metrics": []}, ValueError, "expected at least one metric, got none"),
        ({"metrics": {}}, ValueError, "expected at least one metric, got none"),
        (
            {"reference": "grad_cam"},
            ValueError,
            r"a reference among \['gradcam', 'fakecam', 'random'\], got 'grad_cam'",
        ),
        ({"reference": "fakecam", "controls": False}, ValueError, r"a reference among \['gradcam'\], got 'fakecam'"),
        ({"methods": {"a": GradCAM}}, TypeError, r"attribution as 'a', got the class GradCAM; write GradCAM\(\)"),
        ({"methods": {"a": "gradcm"}}, ValueError, "expected the name of a method, such as .GradCAM., got .gradcm."),
        ({"methods": {"a": Complexity()}}, TypeError, r"attribution as 'a', got Complexity\(\)"),
        (
            {"metrics": {"a": AverageDrop}},
            TypeError,
            r"metrics as 'a', got the class AverageDrop; write AverageDrop\(\)",
        ),
        ({"metrics": {"a": GradCAM()}}, TypeError, "metrics as 'a', got GradCAM"),
        ({"metrics": torchmetrics.MeanMetric()}, TypeError, "metrics as 'mean_metric', got MeanMetric"),
        ({"methods": [GradCAM("3"), GradCAM("0")]}, ValueError, "name them in a dict"),
        ({"metrics": [Insertion(3), Insertion(4)]}, ValueError, "name them in a dict"),
        ({"target": "labels"}, ValueError, "expected target to be one of"),
        ({"target": 3}, ValueError, "expected target to be one of"),
        ({"split": "train"}, ValueError, "expected split to be one of"),
        ({"max_images": 1.5}, ValueError, "expected max_images as a whole number"),
        ({"max_images": True}, ValueError, "expected max_images as a whole number"),
        ({"resamples": "x"}, ValueError, "expected resamples as a whole number"),
        ({"chunk_size": "x"}, ValueError, "expected chunk_size as a whole number"),
        ({"seed": 2**70}, ValueError, "expected seed as a whole number"),
        ({"mean": "abc", "std": "abc"}, ValueError, "expected mean and std together"),
        ({"reference": []}, TypeError, "expected reference as the name of a method, got"),
        ({"controls": 3}, TypeError, "expected controls as True or False, got 3"),
        ({"progress": None}, TypeError, "expected progress as True or False, got None"),
        ({"multilabel": "x"}, TypeError, "expected multilabel as True or False, got 'x'"),
        ({"metrics": 3}, TypeError, "expected an object of interpretable_training.metrics"),
        ({"methods": 3}, TypeError, "attribution as .a method., got 3; write for example"),
        ({"data": [(torch.rand(2, 3, 0, 8), torch.tensor([0, 1]))]}, ValueError, "at least one image with pixels"),
        ({"data": [(torch.rand(2, 3, 8, 8).to_sparse(), torch.tensor([0, 1]))]}, TypeError, "images as a dense tensor"),
        ({"data": [(torch.rand(2, 3, 8, 8).to("meta"), torch.tensor([0, 1]))]}, TypeError, "got a meta one"),
        ({"resamples": 0}, ValueError, r"expected resamples as a whole number of at least 1 .*, got 0"),
        ({"max_images": 0}, ValueError, r"expected max_images as a whole number of at least 1 .*, got 0"),
        ({"mean": (0.5, 0.5, 0.5), "metrics": AverageDrop()}, ValueError, "expected mean and std together"),
        ({"chunk_size": 0}, ValueError, r"expected chunk_size as a whole number of at least 1 .*, got 0"),
        ({"model": lambda x: x}, TypeError, "expected a torch.nn.Module as model, got function"),
        ({"methods": GradCAM("33")}, ValueError, "expected the name of a layer of Sequential, got '33'"),
        ({"multilabel": True}, ValueError, r"expected targets \(B, N\) of zeros and ones, got \(5,\)"),
    ],
)
def test_a_mistake_is_a_sentence(run, given, error, message):
    with pytest.raises(error, match=message):
        run(**given)


def test_a_model_that_returns_nothing_but_nan_is_refused(run, network):
    network[8].weight.data[:] = math.nan
    with pytest.raises(RuntimeError, match="expected numbers from the model, got NaN or infinity for each of the 5"):
        run(metrics=AverageDrop())
    with pytest.raises(RuntimeError, match="are the weights of this checkpoint numbers"):
        run(FakeCAM(), Complexity(), data=[(torch.zeros(1, 3, 8, 8).double(), torch.tensor([0]))])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_images_are_counted_and_change_no_other_image(run, images, target, batch, bad, value):
    metrics = {"ad": AverageDrop(), "complexity": Complexity(), "adcc": ADCC(average="dataset")}
    kept = [i for i in range(5) if i != bad]
    expected = run(metrics=metrics, data=(images[kept], target[kept]), controls=False)
    images[bad, :, 2, 2] = value
    found = run(metrics=metrics, data=list(zip(images.split(batch), target.split(batch))), controls=False)
    for name in metrics:
        cell = found["gradcam", name]
        assert cell.mean == pytest.approx(expected["gradcam", name].mean)
        assert (cell.n, cell.n_invalid) == (4, 1)
        assert found.per_image("gradcam", name).isnan().nonzero().flatten().tolist() == [bad]
    assert "gradcam, ad, complexity, adcc: 1 rows are not numbers and left out." in found.to_text()


def test_constant_maps_are_counted_and_told(run, network):
    network[8].weight.data[:] = 0  # no gradient reaches the features
    found = run()
    assert found["gradcam", "complexity"].n_degenerate == 5
    assert found["gradcam", "complexity"].n == 5
    assert found["fakecam", "complexity"].n_degenerate == 0
    assert "gradcam: 5 of 5 maps are constant or not numbers." in found.to_text()


def test_controls_know_nothing_and_can_be_left_out(run, images):
    found = run(metrics={"c": Complexity(), "add": AverageDropInDeletion()})
    assert list(found.values) == ["gradcam", "fakecam", "random"]
    assert found.controls == ["fakecam", "random"]
    pixels = images[0, 0].numel()
    assert found["fakecam", "c"].mean == pytest.approx(1 - 1 / pixels)
    assert found["random", "c"].mean == pytest.approx(0.5, abs=0.05)
    assert list(run(controls=False).values) == ["gradcam"]


def test_a_method_may_be_called_as_a_control(run):
    """It is then the user's, in his place."""
    found = run({"random": LayerCAM("0"), "mine": RandomMap(3)})
    assert list(found.values) == ["random", "mine", "fakecam"]
    assert (found.reference, found.controls) == ("random", ["fakecam"])
    assert found["random", "complexity"].mean == run(LayerCAM("0"))["layercam", "complexity"].mean


def test_names_of_lists_and_collections(run):
    assert list(run([GradCAM("3"), LayerCAM("0")]).values)[:2] == ["gradcam", "layercam"]
    listed = run(metrics=[AverageDropInDeletion(), ADCC(), Insertion(3)])
    assert list(listed.metrics) == ["average_drop_in_deletion", "adcc", "insertion"]
    collection = torchmetrics.MetricCollection({"a": AverageDrop(), "b": AverageDrop(preset="torchcam")}, prefix="x/")
    found = run(metrics=collection)
    assert list(found.metrics) == ["x/a", "x/b"]
    assert found["gradcam", "x/a"].mean == run(metrics=AverageDrop())["gradcam", "average_drop"].mean
    assert run(reference="random").reference == "random"


def test_metrics_are_copied_not_changed(run):
    metric = AverageDrop()
    before = metric.passport()
    run(metrics=metric, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert metric.passport() == before
    assert metric.count == 0


class Pair(nn.Module):
    """Returns features beside the logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"features": x.flatten(1), "y": self.network(x)}


def test_output_picks_the_logits(run, network):
    methods = GradCAM("network.3")
    expected = run(GradCAM("3"), AverageDrop())
    for output in ("y", lambda found: found["y"]):
        found = run(methods, AverageDrop(), Pair(network), output=output)
        assert found["gradcam", "average_drop"].mean == pytest.approx(expected["gradcam", "average_drop"].mean)
    with pytest.raises(ValueError, match="pass output= with the part"):
        run(methods, AverageDrop(), Pair(network))


def test_keys_pick_images_and_labels_of_any_batch(network, images, target):
    batch = {"left": images, "right": images + 1, "kind": target, "number": torch.arange(len(target))}
    options = {"methods": "GradCAM", "metrics": AverageDrop(), "progress": False}
    with pytest.raises(TypeError, match="expected a batch"):
        evaluate(network, data=[batch], **options)
    plain = evaluate(network, data=[(images + 1, target)], **options)
    for keys in ({"image_key": "right", "label_key": "kind"}, {"image_key": lambda b: b["right"], "label_key": "kind"}):
        keyed = evaluate(network, data=[batch], **options, **keys)
        assert torch.equal(keyed.values["gradcam"]["average_drop"], plain.values["gradcam"]["average_drop"])
    assert keyed.facts["label_key"] == "kind"


@pytest.mark.parametrize("shape", [(3, 9, 5), (3, 8, 8)])
def test_images_of_any_shape(run, target, shape):
    found = run(metrics=[AverageDrop(), Insertion(3)], data=(torch.rand(5, *shape).double(), target))
    assert found.complete


def test_the_progress_bar_counts_images(run, capsys):
    run(progress=True)
    assert "5/5" in capsys.readouterr().err
    run(progress=False)
    assert capsys.readouterr().err == ""
