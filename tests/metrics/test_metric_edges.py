"""Maps, scores and images at the edge: counted, reported, and never averaged away."""

import math
import random

import numpy as np
import pytest
import torch
from support.every_metric import (
    MAKE,
    WITH_MAPS,
    WITHOUT_IMAGES,
    WITHOUT_MAPS,
    WITHOUT_MODEL,
    batch,
)
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
HIDING = {"background_accuracy", "other_background_accuracy", "top_replaced_accuracy"}  # what breaks the scores below
SCORING = sorted(set(MAKE) - {*WITHOUT_IMAGES, *HIDING, "coherency", "max_sensitivity"})  # what looks at the scores
LOCALIZING = {*WITHOUT_MODEL, "official_metric", *WITHOUT_MAPS} - {"complexity", "plain_accuracy"}


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


@pytest.mark.parametrize("name", WITH_MAPS)
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


@pytest.mark.parametrize("name", WITH_MAPS)
def test_constant_maps_are_scored_and_counted(network, images, saliency, target, name):
    S = saliency.clone()
    S[0], S[4] = 0, 0.5
    metric = MAKE[name]()
    metric.update(**batch(metric, network, images, S, target))
    assert counts(metric) == (5, 0, 2)
    assert metric.total.isfinite().all()


@pytest.mark.parametrize("name", WITH_MAPS)
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


@pytest.mark.parametrize(
    "name", sorted(set(MAKE) - {"road", "arcc", "aopc", "single_deletion", "top_replaced_accuracy"} - LOCALIZING)
)
def test_single_pixel_images(network, name):
    """Their maps are constant."""
    images, target = torch.randn(2, 3, 1, 1).double(), torch.tensor([0, 1])
    metric = MAKE[name]()
    metric.update(**batch(metric, network, images, torch.ones(2, 1, 1), target))
    assert counts(metric) == (2, 0, 0 if name in WITHOUT_MAPS else 2)
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


def record(net):
    """All that must be as it was, comparable."""
    kind, keys, *rest = np.random.get_state()
    results = [torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest]
    for module in net.modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and value is not None}
        results.append((module.training, hooks, sorted(vars(module))))
    for name, p in net.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        results.append((name, id(p), p.requires_grad, grad, p.tolist()))
    results += [(name, id(buffer), buffer.tolist()) for name, buffer in net.named_buffers()]
    return results


@pytest.fixture
def disordered(network):
    """As a training leaves it: dropout on, some parameters frozen, gradients on some."""
    for i, module in enumerate(network.modules()):
        module.training = i % 3 != 1
    for i, p in enumerate(network.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.full_like(p, float(i)) if i % 4 == 0 else None
    return network


@pytest.mark.parametrize("name", MAKE)
def test_the_model_and_all_generators_stay_as_they_were(disordered, images, saliency, target, name):
    before = record(disordered)
    metric = MAKE[name]()
    metric.update(**batch(metric, disordered, images, saliency, target))
    metric.compute()
    assert record(disordered) == before


@pytest.mark.parametrize("name", MAKE)
def test_also_after_an_error(disordered, images, saliency, target, name):
    class Boom(nn.Module):
        def forward(self, x):
            raise RuntimeError("boom")

    net = nn.Sequential(*disordered, Boom())
    before = record(net)
    metric = MAKE[name]()
    if name in WITHOUT_MODEL:
        return
    with pytest.raises(RuntimeError, match="boom"):
        metric.update(**batch(metric, net, images, saliency, target))
    assert record(net) == before


@pytest.mark.parametrize("name", MAKE)
def test_a_model_in_training_is_measured_as_in_evaluation(network, images, saliency, target, name):
    """Without dropout and with the running statistics."""
    metric = MAKE[name]()
    calm = metric.measure(**batch(metric, network, images, saliency, target))
    busy = metric.measure(**batch(metric, network.train(), images, saliency, target))
    assert torch.equal(calm, busy)
    assert network.training


@pytest.fixture
def one_logit(function):
    """y = mean of the image, for class 1 of two."""
    return function(lambda x: x.flatten(1).mean(1, keepdim=True))


def test_one_logit_stands_for_two_classes(one_logit, images, saliency):
    """The probability of class 1 is its sigmoid, that of class 0 the rest."""
    y, masked = (x.flatten(1).mean(1) for x in (images, images * saliency[:, None]))
    facts = {"model": one_logit, "images": images, "saliency": saliency}
    for c in (0, 1):
        p, o = ((2 * c - 1) * v for v in (y, masked))
        values = AverageDrop().measure(**facts, target=c)
        assert_close(values, 100 * (p.sigmoid() - o.sigmoid()).relu() / p.sigmoid(), rtol=0, atol=1e-9)
        values = AverageDrop(score="logit", relative=False).measure(**facts, target=c)
        assert_close(values, 100 * (p - o).relu(), rtol=0, atol=1e-9)


def test_a_regression_is_measured_by_its_output(function):
    """Its value, above 0, takes the place of the probability: deletion of the mean of ones has the area 1/2."""
    model, x = function(lambda z: 3 * z.mean((1, 2, 3))), torch.ones(1, 1, 4, 4).double()  # a bare (B,)
    facts = {"model": model, "images": x, "saliency": torch.rand(1, 4, 4), "target": 1}
    assert Deletion(score="logit").measure(**facts).item() == pytest.approx(150, abs=1e-9)
    half = {**facts, "saliency": torch.full((1, 4, 4), 0.25)}
    assert AverageDrop(score="logit").measure(**half).item() == pytest.approx(75, abs=1e-9)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_of_other_precision(network, images, saliency, target, name, dtype):
    """The numbers are those of double precision, but for rounding; sums are in double precision."""
    metric, exact = MAKE[name](), MAKE[name]()
    values = exact.measure(**batch(exact, network, images, saliency, target))
    network = network.to(dtype)
    metric.update(**batch(metric, network, images.float(), saliency.float(), target))
    assert metric.total.dtype == torch.float64
    assert int(metric.count) == 5
    if name not in (
        "average_increase",
        "max_sensitivity",
        "adcc_of_means",
        "box_accuracy",
        "px_ap",
    ):  # a jump, kinks, no mean of values
        atol = 1e-2 if dtype == torch.float32 else 15
        assert_close(metric.compute().double(), values.mean(), rtol=0, atol=atol)


def test_probabilities_of_half_precision_logits_are_computed_in_full(function):
    """Logits of 6 and 7 have the probabilities .99753 and .99909; rounded to bfloat16 both are .99609 or 1."""
    model = function(lambda x: torch.stack([0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], 1))
    x, S = torch.full((1, 1, 1, 2), 7.0, dtype=torch.bfloat16), torch.tensor([[[6 / 7, 1.0]]])
    p, o = (torch.tensor(y, dtype=torch.float64).sigmoid() for y in (7.0, 6.0))
    value = AverageDrop().measure(model=model, images=x, saliency=S, target=1)
    assert_close(value[0], 100 * (p - o) / p, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_under_autocast(network, images, saliency, target, name):
    network, metric = network.float(), MAKE[name]()
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(**batch(metric, network, images.float(), saliency.float(), target))
    assert metric.total.dtype == torch.float64
    assert metric.compute().isfinite()


@pytest.mark.parametrize("wrap", [lambda y: {"logits": y}, lambda y: (y, None), lambda y: {"out": y, "aux": 2 * y}])
def test_logits_in_dicts_and_tuples(network, function, images, saliency, target, wrap):
    plain = {"model": network, "images": images, "saliency": saliency, "target": target}
    wrapped = {**plain, "model": function(lambda x: wrap(network(x)))}
    for metric in (AverageDrop(), Insertion(3)):
        assert_close(metric.measure(**wrapped), metric.measure(**plain), rtol=0, atol=1e-12)


def test_a_compiled_model_runs_as_it_is(network, images, saliency, target):
    compiled = torch.compile(network, backend="eager")
    facts = {"images": images, "saliency": saliency, "target": target}
    assert torch.equal(AverageDrop().measure(model=compiled, **facts), AverageDrop().measure(model=network, **facts))


@pytest.mark.parametrize("name", MAKE)
def test_memory_formats_do_not_matter(network, images, saliency, target, name):
    """One map seen as five, a transposed one, and channels last."""
    metric = MAKE[name]()
    plain = metric.measure(**batch(metric, network, images, saliency[:1].repeat(5, 1, 1), target))
    x, S = images.to(memory_format=torch.channels_last), saliency[:1].expand(5, 12, 8)
    assert_close(metric.measure(**batch(metric, network, x, S, target)), plain, rtol=0, atol=1e-9)
    turned = saliency[:1].repeat(5, 1, 1).mT.contiguous().mT
    assert_close(metric.measure(**batch(metric, network, x, turned, target)), plain, rtol=0, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MAKE)
def test_a_gpu_gives_the_same_values(network, images, saliency, target, name):
    metric = MAKE[name]()
    values = metric.measure(**batch(metric, network, images, saliency, target))
    there = metric.to("cuda").measure(**batch(metric, network.cuda(), images.cuda(), saliency.cuda(), target.cuda()))
    assert_close(there.cpu(), values, rtol=0, atol=1e-6)


def test_maps_may_come_in_half_precision_or_from_inference_mode(network, images, target):
    S = torch.rand(5, 12, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    facts = {"model": network, "images": images, "target": target}
    for metric in (AverageDrop(), Deletion(4)):
        expected = metric.measure(**facts, saliency=S.double())
        assert_close(metric.measure(**facts, saliency=S), expected, rtol=0, atol=1e-9)
    with torch.inference_mode():
        inside = {"model": network, "images": images.clone(), "target": target.clone(), "saliency": S.clone()}
        for name in MAKE:
            metric = MAKE[name]()
            metric.update(**batch(metric, **inside))
    assert Complexity().measure(saliency=inside["saliency"]).shape == (5,)
