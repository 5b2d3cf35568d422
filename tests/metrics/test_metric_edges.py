"""Maps, scores and images at the edge: counted, reported, and never averaged away."""

import math

import pytest
import torch
from support.every_metric import MAKE, WITHOUT_IMAGES, WITHOUT_MODEL, batch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import Gradient
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
    MaxSensitivity,
)
from interpretable_training.metrics.core.rescoring import scored_batch

NAN, INF = math.nan, math.inf
SCORING = sorted(set(MAKE) - {*WITHOUT_IMAGES, "coherency", "max_sensitivity"})  # what looks at the model's scores
LOCALIZING = {*WITHOUT_MODEL, "official_metric"} - {"complexity"}


@pytest.fixture
def breaks(network, images):
    """The network, whose logits of the image number 2 are all `value`, clean or changed: its corner says so."""
    images = images.clone()
    images[2, :, 3, 3] = 77

    def make(value, classes=slice(None)):
        class Breaks(nn.Sequential):
            def forward(self, x):
                y = super().forward(x)
                broken = torch.zeros_like(y, dtype=torch.bool)
                broken[:, classes] = (x[:, 0].flatten(1).abs().amax(1) > 20)[:, None]
                return torch.where(broken, torch.tensor(value), y)

        return Breaks(*network).eval(), images

    return make


def counts(metric):
    return int(metric.count), int(metric.n_invalid), int(metric.n_degenerate)


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("value", [NAN, INF])
def test_logits_that_are_not_finite_are_left_out_and_counted(breaks, saliency, target, name, value):
    model, images = breaks(value)
    metric, rest = MAKE[name](), MAKE[name]()
    metric.update(**batch(metric, model, images, saliency, target))
    keep = [0, 1, 3, 4]
    rest.update(**batch(rest, model, images[keep], saliency[keep], target[keep]))
    assert counts(metric) == (4, 1, 0)
    assert_close(metric.total, rest.total, rtol=1e-9, atol=1e-9)
    with pytest.warns(UserWarning, match=r"leaves out 1 of 5 images"):
        value = metric.compute()
    assert_close(value, rest.compute())
    assert metric.measure(**batch(metric, model, images, saliency, target)).isnan().tolist() == [0, 0, 1, 0, 0]


def test_one_class_that_is_not_finite_spoils_the_probabilities_of_all(breaks, saliency, target):
    model, images = breaks(NAN, [1])
    metric = AverageDrop()
    metric.update(model=model, images=images, saliency=saliency, target=target)
    assert counts(metric) == (4, 1, 0)


@pytest.mark.parametrize("name", MAKE)
def test_maps_that_are_not_numbers_are_left_out_and_counted(network, images, saliency, target, name):
    S = saliency.clone()
    S[1], S[3, 0, 0] = NAN, NAN
    metric, rest = MAKE[name](), MAKE[name]()
    metric.update(**batch(metric, network, images, S, target))
    keep = [0, 2, 4]
    rest.update(**batch(rest, network, images[keep], S[keep], target[keep]))
    assert counts(metric)[:2] == (3, 2)
    assert_close(metric.total, rest.total, rtol=1e-9, atol=1e-9)
    with pytest.warns(UserWarning, match="leaves out 2 of 5 images"):
        metric.compute()


@pytest.mark.parametrize("name", MAKE)
def test_constant_maps_are_scored_and_counted(network, images, saliency, target, name):
    S = saliency.clone()
    S[0], S[4] = 0, 0.5
    metric = MAKE[name]()
    metric.update(**batch(metric, network, images, S, target))
    assert counts(metric) == (5, 0, 2)
    assert metric.total.isfinite().all()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.filterwarnings("ignore:.*leaves out")
def test_nothing_but_invalid_images_is_no_number(network, images, target, name):
    metric = MAKE[name]()
    metric.update(**batch(metric, network, images, torch.full((5, 12, 8), NAN), target))
    assert counts(metric)[:2] == (0, 5)
    assert metric.compute().isnan()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", MAKE)
def test_no_image_is_no_number(name):
    assert MAKE[name]().compute().isnan()


@pytest.mark.filterwarnings("ignore:.*leaves out")
def test_scores_that_are_not_finite_are_left_out():
    for bad in (NAN, INF, -INF):
        metric = AverageDrop()
        metric.update(torch.tensor([0.5, bad, 0.5]), torch.tensor([0.25, 0.5, bad]))
        assert counts(metric) == (1, 2, 0)
        assert_close(metric.compute(), torch.tensor(50.0))


def test_an_invalid_image_is_invalid_whatever_its_probability():
    """0/0 is 0, but 0/NaN and NaN/0 are not numbers."""
    p, o = torch.tensor([0.0, NAN, 1.0]), torch.tensor([NAN, 0.0, NAN])
    for metric in (AverageDrop(), AverageGain(), AverageIncrease()):
        assert metric.measure(prob=p, prob_masked=o).isnan().all()
    assert AverageDropInDeletion().measure(prob=p, prob_deleted=o).isnan().all()


def test_an_image_is_counted_as_invalid_once(network, images, target):
    S = torch.rand(5, 12, 8)
    S[0] = NAN
    metric = Deletion(3)
    metric.update(network, torch.where(torch.arange(5).view(5, 1, 1, 1) == 0, NAN, images), S, target)
    assert counts(metric)[:2] == (4, 1)


@pytest.mark.parametrize("name", MAKE)
def test_images_that_are_not_numbers_are_left_out(network, images, saliency, target, name):
    x = images.clone()
    x[2, 0, 0, 0] = NAN
    metric = MAKE[name]()
    metric.update(**batch(metric, network, x, saliency, target))
    assert counts(metric)[:2] == ((5, 0) if name in WITHOUT_IMAGES else (4, 1))


@pytest.mark.parametrize("name", sorted(set(MAKE) - {"road", "aopc"} - LOCALIZING))
def test_single_pixel_images(network, name):
    """Their maps are constant."""
    images, target = torch.randn(2, 3, 1, 1).double(), torch.tensor([0, 1])
    metric = MAKE[name]()
    metric.update(**batch(metric, network, images, torch.ones(2, 1, 1), target))
    assert counts(metric) == (2, 0, 2)
    assert metric.compute().isfinite()


def test_the_curves_of_a_single_pixel_have_two_ends(scored):
    """(p(x) + p(0)) / 2."""
    model = scored(lambda z: z.flatten(1).mean(1))
    facts = {
        "model": model,
        "images": torch.full((1, 1, 1, 1), 0.6, dtype=torch.float64),
        "saliency": torch.ones(1, 1, 1),
    }
    assert Deletion().measure(**facts, target=1).item() == pytest.approx(30, abs=1e-9)


@pytest.fixture
def signals(function):
    """A model of signals (B, 2, T): the mean over time."""
    model = function(lambda x: x.mean(2))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 10, generator=generator).double() + 0.5
    return {"model": model, "images": x, "saliency": torch.rand(3, 10, generator=generator).double(), "target": 1}


def test_drops_of_signals(signals):
    x, S = signals["images"], signals["saliency"]
    p, o, d = x[:, 1].mean(1), (x[:, 1] * S).mean(1), (x[:, 1] * (1 - S)).mean(1)
    assert_close(AverageDrop(score="logit").measure(**signals), 100 * (p - o) / p, rtol=0, atol=1e-9)
    assert_close(AverageDropInDeletion(score="logit").measure(**signals), 100 * (p - d) / p, rtol=0, atol=1e-9)


@pytest.mark.parametrize("substrate", ["mean", "blur", "gaussian", "min", "uniform"])
def test_curves_of_signals(signals, substrate):
    values = Insertion(5, score="logit", substrate=substrate).measure(**signals)
    assert values.isfinite().all()
    if substrate == "mean":
        x, S = signals["images"][:, 1], signals["saliency"]
        ordered = x.gather(1, S.argsort(1, descending=True)).view(3, 5, 2).sum(2) / 10
        s = torch.cat([torch.zeros(3, 1).double(), ordered.cumsum(1)], 1)
        assert_close(values, 100 * torch.trapezoid(s, dx=0.2, dim=1), rtol=0, atol=1e-9)


def test_the_default_curve_of_a_signal_depends_on_its_map(signals):
    """One step alone would give every map the same area."""
    values = Deletion(score="logit").measure(**signals)
    opposite = Deletion(score="logit").measure(**{**signals, "saliency": 1 - signals["saliency"]})
    assert (values - opposite).abs().min() > 1e-3


def test_other_metrics_of_signals(signals):
    S = Gradient(reduce="abs_sum")(signals["model"], signals["images"], 1)
    assert S.shape == (3, 10)
    assert Complexity().measure(saliency=signals["saliency"]).shape == (3,)
    for metric in (Coherency(Gradient()), ADCC(Gradient(), score="logit"), MaxSensitivity(Gradient(), n=2)):
        assert metric.measure(**signals).isfinite().all()


@pytest.mark.parametrize("metric", [AOPC(2, 2), ROAD((50,))], ids=["aopc", "road"])
def test_metrics_of_images_refuse_signals(signals, metric):
    with pytest.raises(ValueError, match=r"expected .*images \(B, C, H, W\)"):
        metric.update(**signals)


def test_volumes_have_curves(function):
    model, x = function(lambda z: z.flatten(2).mean(2)), torch.ones(1, 2, 2, 3, 4).double()
    S = torch.rand(1, 2, 3, 4)
    assert Deletion(score="logit").measure(model=model, images=x, saliency=S, target=0).item() == pytest.approx(50)


def test_what_is_measured_does_not_change_what_was_given(network, images, saliency, target):
    before = [t.clone() for t in (images, saliency, target)]
    for make in MAKE.values():
        metric = make()
        metric.update(**batch(metric, network, images, saliency, target))
    assert all(torch.equal(a, b) for a, b in zip(before, (images, saliency, target)))


def test_rounding_may_leave_the_unit_interval(images):
    S = torch.rand(5, 12, 8).double() * (1 + 2e-5) - 1e-5
    with scored_batch(images=images, saliency=S) as scored:
        assert 0 <= scored.saliency.min() <= scored.saliency.max() <= 1
