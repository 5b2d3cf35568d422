"""What `evaluate` refuses, in a sentence, and what it counts instead."""

import math

import pytest
import torch
import torchmetrics
from torch import nn

from interpretable_training.attribution import FakeCAM, GradCAM, LayerCAM, RandomMap
from interpretable_training.metrics import ADCC, AverageDrop, AverageDropInDeletion, Complexity, Insertion, evaluate

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
        ({"methods": {"a": "gradcam"}}, TypeError, "attribution as 'a', got 'gradcam'"),
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
def test_an_image_that_is_not_of_numbers_is_counted_and_the_others_are_as_without_it(
    run, images, target, batch, bad, value
):
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
    with pytest.raises(TypeError, match="pass output= with the key"):
        run(methods, AverageDrop(), Pair(network))


@pytest.mark.parametrize("shape", [(3, 9, 5), (3, 8, 8)])
def test_images_of_any_shape(run, target, shape):
    found = run(metrics=[AverageDrop(), Insertion(3)], data=(torch.rand(5, *shape).double(), target))
    assert found.complete


def test_the_progress_bar_counts_images(run, capsys):
    run(progress=True)
    assert "5/5" in capsys.readouterr().err
    run(progress=False)
    assert capsys.readouterr().err == ""
