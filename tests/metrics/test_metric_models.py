"""Models stay as they were, and may be of any kind: one logit, half precision, wrapped, with other outputs."""

import random

import numpy as np
import pytest
import torch
from support.every_metric import MAKE, WITHOUT_MODEL, batch
from torch import nn
from torch.testing import assert_close

from interpretable_training.metrics import AverageDrop, Complexity, Deletion, Insertion


def record(net):
    """All that must be as it was, comparable."""
    kind, keys, *rest = np.random.get_state()
    found = [torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest]
    for module in net.modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and value is not None}
        found.append((module.training, hooks, sorted(vars(module))))
    for name, p in net.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        found.append((name, id(p), p.requires_grad, grad, p.tolist()))
    found += [(name, id(buffer), buffer.tolist()) for name, buffer in net.named_buffers()]
    return found


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
