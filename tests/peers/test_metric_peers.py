"""Numbers equal those of published implementations on fixed maps, with the options that follow their conventions.

The peers compute in single precision.
"""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from support.metric_fixtures import curves  # noqa: F401 (a fixture)
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import InputXGradient, normalize
from interpretable_training.metrics import (
    AOPC,
    ARCC,
    ROAD,
    AverageDrop,
    AverageIncrease,
    Deletion,
    Infidelity,
    Insertion,
    MaxSensitivity,
)
from interpretable_training.metrics.core.imputation import impute

TARGET = torch.tensor([0, 3, 1, 2])


def net(channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, 1, 1), nn.Tanh(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        head = nn.Linear(8 * 25, 4)
        nn.init.normal_(head.weight, std=0.3)
    return nn.Sequential(*net, head).eval()


def fixed(channels):
    """Images of 10 x 10 pixels, so that a percentage is a number of pixels, and maps without equal values."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, channels, 10, 10, generator=generator)
    S = torch.stack([torch.randperm(100, generator=generator) / 99 for _ in x]).view(4, 10, 10)
    return {"model": net(channels), "images": x, "saliency": S, "target": TARGET}


@pytest.fixture(params=[1, 3])
def facts(request):
    return fixed(request.param)


@pytest.fixture
def gray():
    """Quantus counts each channel of a pixel as a feature of its own."""
    return fixed(1)


class FixedMaps:
    """What torchcam's metrics need of an extractor."""

    def __init__(self, model, saliency):
        self.model, self.saliency = model, saliency

    def __call__(self, class_idx, scores=None, normalized=True, **kwargs):
        return [self.saliency]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


def torchcam(name, facts, logits_fn, **options):
    metrics = pytest.importorskip("torchcam.metrics")
    metric = getattr(metrics, name)(FixedMaps(facts["model"], facts["saliency"]), logits_fn, **options)
    metric.update(facts["images"], facts["target"].tolist())
    return metric.summary()


def test_drop_and_increase_equal_torchcam(facts):
    theirs = torchcam("ClassificationMetric", facts, partial(torch.softmax, dim=-1))
    drop, increase = AverageDrop(preset="adcc"), AverageIncrease(preset="adcc")
    for metric in (drop, increase):
        metric.update(**facts)
    assert drop.compute().item() == pytest.approx(100 * theirs["avg_drop"], rel=1e-4)
    assert increase.compute().item() == pytest.approx(100 * theirs["conf_increase"], rel=1e-6)
    assert 0 < theirs["conf_increase"] < 1


def test_the_drop_of_logits_equals_torchcam(facts):
    """Where logits are positive; a negative one makes the peer's ratio negative."""
    facts["model"][-1].bias.data += 20
    theirs = torchcam("ClassificationMetric", facts, None)
    drop = AverageDrop(preset="torchcam")
    drop.update(**facts)
    assert drop.compute().item() == pytest.approx(100 * theirs["avg_drop"], rel=1e-4)


@pytest.mark.parametrize("steps", [20, 7, 100])
def test_insertion_and_deletion_equal_torchcam(facts, steps):
    theirs = torchcam("DeletionInsertionMetric", facts, partial(torch.softmax, dim=-1), steps=steps)
    for metric, name in ((Insertion, "insertion_auc"), (Deletion, "deletion_auc")):
        metric = metric(steps, preset="torchcam")
        metric.update(**facts)
        assert metric.compute().item() == pytest.approx(100 * theirs[name], rel=1e-4)


def test_ties_are_those_of_torchcam(facts):
    facts["saliency"] = (facts["saliency"] * 4).round() / 4
    theirs = torchcam("DeletionInsertionMetric", facts, partial(torch.softmax, dim=-1))
    metric = Deletion(preset="torchcam")
    metric.update(**facts)
    assert metric.compute().item() == pytest.approx(100 * theirs["deletion_auc"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_large_networks_equal_torchcam(name):
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10, weights=None).eval()
    generator = torch.Generator().manual_seed(1)
    x, S = torch.randn(2, 3, 96, 64, generator=generator), torch.rand(2, 96, 64, generator=generator)
    facts = {"model": Amplified(model), "images": x, "saliency": S, "target": torch.tensor([3, 7])}
    softmax = partial(torch.softmax, dim=-1)
    theirs = {
        **torchcam("ClassificationMetric", facts, softmax),
        **torchcam("DeletionInsertionMetric", facts, softmax, steps=28),
    }
    names = {"avg_drop": AverageDrop, "insertion_auc": Insertion, "deletion_auc": Deletion}
    for key, metric in names.items():
        metric = metric(preset="adcc") if metric is AverageDrop else metric(28, preset="torchcam")
        metric.update(**facts)
        assert metric.compute().item() == pytest.approx(100 * theirs[key], rel=1e-3)


class Amplified(nn.Module):
    """Untrained networks give all classes nearly the same probability; larger logits tell them apart."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 100 * self.model(images)


def pytorch_grad_cam(metric, facts):
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    chosen = [targets.ClassifierOutputSoftmaxTarget(int(c)) for c in facts["target"]]
    return torch.from_numpy(metric(facts["images"], facts["saliency"].numpy(), chosen, facts["model"]))


def test_the_absolute_drop_equals_pytorch_grad_cam(facts):
    peer = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    theirs = pytorch_grad_cam(peer.DropInConfidence(), facts), pytorch_grad_cam(peer.IncreaseInConfidence(), facts)
    ours = AverageDrop(preset="pytorch_grad_cam").measure(**facts)
    assert_close(ours.float(), 100 * theirs[0], rtol=0, atol=1e-4)
    ours = AverageIncrease(preset="pytorch_grad_cam").measure(**facts)
    assert_close(ours.float(), 100 * theirs[1], rtol=0, atol=0)


@pytest.fixture
def noiseless(monkeypatch):
    """pytorch-grad-cam's `road` without noise, which it does not seed."""
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")

    class Noiseless(road.NoisyLinearImputer):
        def __init__(self):
            super().__init__(noise=0.0)

    monkeypatch.setattr(road, "NoisyLinearImputer", Noiseless)
    return road


@pytest.mark.parametrize("percentages", [(10, 20, 30, 40, 50, 60, 70, 80, 90), (5, 95)])
def test_road_equals_pytorch_grad_cam(noiseless, facts, percentages):
    """The peer removes 100 - p percent at its percentile p: the percentages must be symmetric."""
    theirs = pytorch_grad_cam(noiseless.ROADCombined(list(percentages)), facts)
    ours = ROAD(percentages, noise=0.0).measure(**facts)
    assert theirs.abs().max() > 1e-3
    assert_close(ours.float(), 100 * theirs, rtol=0, atol=1e-3)


def test_arcc_equals_pytorch_grad_cam(noiseless, facts):
    """Of a method that gives each image the same map, so that coherency is known; the peer explains by a function."""
    arcc = pytest.importorskip("pytorch_grad_cam.metrics.arcc")
    method = InputXGradient()

    def explain(input_tensor, targets):
        return normalize(method(facts["model"], input_tensor, TARGET)).numpy()

    peer = arcc.ARCC(base_method=explain)
    softmax = [lambda output, c=c: output.softmax(-1)[c] for c in TARGET.tolist()]
    S = torch.from_numpy(explain(facts["images"], None))
    theirs = peer(facts["images"], S.numpy(), softmax, facts["model"])
    ours = ARCC(method, noise=0.0).measure(**{**facts, "saliency": S})
    assert (ours > 0.05).any()
    assert_close(ours.float(), torch.as_tensor(theirs).float(), rtol=0, atol=1e-4)


def test_infidelity_equals_captum(facts):
    captum = pytest.importorskip("captum.metrics")
    metric = Infidelity(n=20, score="prob")
    R = metric.regions(facts["images"].shape[2:])

    def remove(inputs, *_):
        """captum asks for all perturbations at once, those of an image one after the other."""
        which = R.repeat(len(inputs) // len(R), 1, 1)[:, None].to(inputs)
        return which.expand_as(inputs), inputs * (1 - which)

    S = facts["saliency"][:, None].expand_as(facts["images"]) / facts["images"].shape[1]
    options = {"target": TARGET, "n_perturb_samples": 20, "normalize": True}
    theirs = captum.infidelity(lambda x: facts["model"](x).softmax(1), remove, facts["images"], S, **options)
    assert_close(metric.measure(**facts).float(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_imputation_equals_pytorch_grad_cam(noiseless, facts, share):
    x, missing = facts["images"], facts["saliency"] < share
    theirs = [noiseless.NoisyLinearImputer()(image, (~hole).float()) for image, hole in zip(x, missing)]
    assert_close(impute(x, missing), torch.stack(theirs), rtol=0, atol=1e-5)


def quantus(name, facts, softmax=True, explain_func=None, **options):
    """Curves, not areas: its areas need a function that numpy has no more."""
    peer = pytest.importorskip("quantus")
    metric = getattr(peer, name)(abs=False, normalise=False, disable_warnings=True, **options)
    results = metric(
        model=facts["model"],
        x_batch=facts["images"].numpy(),
        y_batch=facts["target"].numpy(),
        a_batch=facts["saliency"].numpy()[:, None],
        explain_func=explain_func,
        softmax=softmax,
        channel_first=True,
        device="cpu",
    )
    return results if isinstance(results, dict) else torch.from_numpy(np.array(results)).float()


@pytest.mark.parametrize("g", [1, 10, 25])
def test_the_deletion_curve_equals_the_pixel_flipping_of_quantus(gray, curves, g):  # noqa: F811
    """Whose curve lacks the clean image; "black" is zero where it is given as the number."""
    theirs = quantus("PixelFlipping", gray, features_in_step=g, perturb_baseline=0.0)
    ours = curves(Deletion(100 // g), **gray)["deletion"]
    assert_close(ours[:, 1:].float(), theirs, rtol=0, atol=1e-5)


def test_aopc_is_the_mean_of_quantus_region_perturbation(gray):
    """Whose curve lacks the term k = 0, and whose "black" is the lowest value of the batch."""
    options = {"patch_size": 2, "regions_evaluation": 6, "order": "morf"}
    theirs = quantus("RegionPerturbation", gray, perturb_baseline=0.0, **options)
    ours = AOPC(2, 6, "mean").measure(**gray)
    assert_close(ours.float(), 100 * theirs.sum(1) / 7, rtol=0, atol=1e-3)


def test_road_after_the_most_salient_equals_quantus(gray, curves):  # noqa: F811
    """It reports the accuracy after each percentage, without noise here."""
    percentages = [1, 5, 20, 50, 80, 99]
    with torch.no_grad():
        gray["target"] = gray["model"](gray["images"]).argmax(1)
    theirs = quantus("ROAD", gray, percentages=percentages, noise=0.0)
    ours = curves(ROAD(percentages, "accuracy", noise=0.0), **gray)["most salient removed"].mean(0)
    assert ours.tolist() == pytest.approx([float(theirs[q]) for q in percentages])
    assert 0 < ours.mean() < 1


@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_max_sensitivity_equals_quantus_at_our_draws(facts, radius):
    """Maps as the method makes them; the draws are the same for all images."""
    method, x = InputXGradient(reduce="signed_sum"), facts["images"]
    facts = {**facts, "saliency": method(facts["model"], x, TARGET)}
    generator = torch.Generator().manual_seed(0)
    draws = iter([radius * (2 * torch.rand(x.shape[1:], generator=generator) - 1).flatten() for _ in range(5)])

    def perturb(arr, indices, **kwargs):
        return arr + next(draws).numpy()

    def explain(model, inputs, targets, **kwargs):
        return method(model, torch.from_numpy(inputs), torch.from_numpy(targets)).numpy()[:, None]

    theirs = quantus("MaxSensitivity", facts, False, explain, nr_samples=5, perturb_func=perturb)
    S = torch.zeros(4, 10, 10)  # not looked at
    ours = MaxSensitivity(method, radius, 5, raw=True).measure(**{**facts, "saliency": S})
    assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-6)
