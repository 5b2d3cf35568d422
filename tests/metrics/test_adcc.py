"""Coherency, complexity and ADCC: numbers by hand and methods whose maps are known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, Gradient, RandomMap, normalize
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.metrics import ADCC, Coherency, Complexity
from interpretable_training.metrics.core.rescoring import scored_batch


@dataclass(frozen=True)
class FirstChannel(Attribution):
    """The image's first channel, times a sign: what is masked changes the map."""

    sign: float = 1.0

    def attribute(self, prepared, images, target):
        return self.sign * images[:, 0]


def maps(*values):
    """2 x 2 maps of the four values each."""
    return torch.tensor(values).double().view(-1, 2, 2)


def parts(coherent, hidden, kept):
    """What ADCC takes to be 2 x 2 maps of the given complexity, coherency 1 or 0, and drop 1 - kept."""
    S = maps(hidden)
    again = S if coherent else 1 - S
    prob = torch.tensor([0.8]).double()
    return {"saliency": S, "saliency_masked": again, "prob": prob, "prob_masked": kept * prob}


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1.0, 1), (0.25, 0.25)])
def test_complexity_of_constant_maps(value, expected):
    assert Complexity().measure(saliency=torch.full((1, 3, 5), value)).item() == expected


def test_complexity_of_fake_cam_and_of_any_map(constant, images, saliency):
    fake = FakeCAM()(constant, images, 1)
    assert_close(
        Complexity().measure(saliency=fake), torch.full((5,), 1 - 1 / 96, dtype=torch.float64), rtol=0, atol=1e-9
    )
    expected = saliency.numpy().reshape(5, -1).sum(1) / 96
    assert_close(Complexity().measure(saliency=saliency), torch.from_numpy(expected), rtol=0, atol=1e-9)


def test_complexity_of_half_precision_maps_is_summed_in_double():
    S = torch.full((1, 224, 224), 0.5, dtype=torch.bfloat16)
    S[0, 0, 0] = 1
    assert Complexity().measure(saliency=S).item() == pytest.approx(0.5 + 0.5 / 224**2, abs=1e-12)


def test_a_method_that_ignores_the_image_is_coherent(network, images, target):
    S = FakeCAM()(network, images, target)
    values = Coherency(FakeCAM()).measure(model=network, images=images, saliency=S, target=target)
    assert_close(values, torch.ones(5).double(), rtol=0, atol=1e-9)


def test_a_map_that_turns_into_its_opposite_is_not(saliency):
    values = Coherency().measure(saliency=saliency, saliency_masked=1 - saliency)
    assert_close(values, torch.zeros(5).double(), rtol=0, atol=1e-9)
    values = Coherency(rescale=False).measure(saliency=saliency, saliency_masked=1 - saliency)
    assert_close(values, -torch.ones(5).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"space": "pixel", "mean": (0.4,) * 3, "std": (0.2,) * 3}])
def test_coherency_is_the_correlation_of_two_explanations(network, images, target, options):
    method = Gradient()
    S = normalize(method(network, images, target)).double()
    masked = images * S[:, None]
    if options:
        masked = ((images * 0.2 + 0.4) * S[:, None] - 0.4) / 0.2
    again = method(network, masked, target)
    rho = [np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1] for a, b in zip(S, again)]
    facts = {"model": network, "images": images, "saliency": S, "target": target}
    values = Coherency(method, rescale=False, **options).measure(**facts)
    assert_close(values, torch.tensor(rho).double(), rtol=0, atol=1e-6)  # maps are explained in float32 at least
    assert_close(Coherency(method, **options).measure(**facts), (1 + values) / 2, rtol=0, atol=1e-12)


def test_correlation_does_not_see_how_maps_are_scaled(saliency):
    values = Coherency().measure(saliency=saliency, saliency_masked=7 * saliency - 3)
    assert_close(values, torch.ones(5).double(), rtol=0, atol=1e-9)


def test_constant_maps_are_coherent_with_equal_ones_only():
    flat, other, slope = [0.5] * 4, [0.25] * 4, [0.0, 0.1, 0.2, 0.3]
    a, b = maps(flat, flat, flat, slope), maps(flat, other, slope, flat)
    assert Coherency(rescale=False).measure(saliency=a, saliency_masked=b).tolist() == [1, 0, 0, 0]
    metric = Coherency()
    metric.update(saliency=a, saliency_masked=b)
    assert (int(metric.count), int(metric.n_invalid), int(metric.n_degenerate)) == (4, 0, 3)
    assert_close(metric.compute(), torch.tensor(2.5 / 4))


def test_a_map_of_the_masked_image_that_is_not_a_number_is_counted(saliency):
    again = saliency.clone()
    again[2, 0, 0] = torch.nan
    metric = Coherency()
    metric.update(saliency=saliency, saliency_masked=again)
    assert (int(metric.count), int(metric.n_invalid)) == (4, 1)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (parts(True, [0.0] * 4, 1.0), 1),
        (parts(True, [1.0, 1, 0, 0], 1.0), 0.75),
        (parts(True, [1.0, 1, 0, 0], 0.5), 3 / (1 + 2 + 2)),
        (parts(True, [1.0, 1, 0, 0], 2.0 / 3), 3 / (1 + 2 + 1.5)),
        (parts(True, [1.0, 0, 0, 0], 1.2), 3 / (1 + 4 / 3 + 1)),  # a gain is no drop
        (parts(True, [1.0] * 4, 1.0), 0),  # complexity 1
        (parts(False, [1.0, 1, 0, 0], 1.0), 0),  # coherency 0
        (parts(True, [1.0, 1, 0, 0], 0.0), 0),  # drop 1
    ],
)
def test_adcc_by_hand(facts, expected):
    assert ADCC().measure(**facts).item() == pytest.approx(expected, abs=1e-9)


def test_adcc_of_fake_cam(constant):
    """Coherency 1, drop 0, complexity 1 - 1/HW: 3 / (1 + HW + 1)."""
    x = torch.rand(2, 1, 4, 5).double()
    S = FakeCAM()(constant, x, 1)
    values = ADCC(FakeCAM()).measure(model=constant, images=x, saliency=S, target=1)
    assert_close(values, torch.full((2,), 3 / 22, dtype=torch.float64), rtol=0, atol=1e-9)


def test_means_of_adcc_and_adcc_of_means():
    """(1, .5, 0) has .75 and (1, .5, 1) has 0; their means (1, .5, .5) have 3 / (1 + 2 + 2)."""
    a, b = parts(True, [1.0, 1, 0, 0], 1.0), parts(True, [1.0, 1, 0, 0], 0.0)
    for average, expected in (("images", 0.375), ("dataset", 0.6)):
        metric = ADCC(average=average)
        metric.update(**a)
        metric.update(**b)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
        values = torch.cat([metric.measure(**a), metric.measure(**b)])
        assert_close(values, torch.tensor([0.75, 0]).double(), rtol=0, atol=1e-9)


def test_adcc_is_the_harmonic_mean_of_its_parts(network, images, target):
    method = FirstChannel()
    S = normalize(method(network, images, target))
    facts = {"model": network, "images": images, "saliency": S, "target": target}
    coherency, complexity = Coherency(method).measure(**facts), Complexity().measure(saliency=S)
    with torch.no_grad():
        p, o = (network(x).softmax(1)[range(5), target] for x in (images, images * S[:, None]))
    drop = (p - o).relu() / p
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    assert_close(ADCC(method).measure(**facts), expected, rtol=0, atol=1e-9)


def test_maps_are_explained_again_once(network, images, target):
    method = FirstChannel()
    S = normalize(method(network, images, target))
    with scored_batch(network, images, S, target, method=method) as scored:
        Coherency().rows(scored)
        before = dict(scored.stored)
        Coherency(rescale=False).rows(scored)
        assert scored.stored == before
        ADCC().rows(scored)
        assert sum(key[0] == "again" for key in scored.stored if isinstance(key, tuple)) == 1


def test_both_parts_of_adcc_see_the_same_masked_image(network, images, target):
    """Also where only the highest pixels stay."""
    method = FirstChannel()
    S = normalize(method(network, images, target))
    metric = ADCC(method, average="dataset", topk=25)
    with scored_batch(network, images, S, target, method=method) as scored:
        coherency = metric.rows(scored)[:, 0]
    kept = torch.zeros_like(S).flatten(1)
    kept.scatter_(1, S.flatten(1).topk(24, 1).indices, 1)
    again = normalize(method(network, images * kept.view(5, 1, 12, 8), target))
    rho = [np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1] for a, b in zip(S, again)]
    assert_close(coherency, (1 + torch.tensor(rho).double()) / 2, rtol=0, atol=1e-9)


def test_a_random_map_stays_the_same_for_the_same_image(network, images, target):
    metric = Coherency(RandomMap())
    S = RandomMap()(network, images, target)
    facts = {"model": network, "images": images, "saliency": S, "target": target}
    assert torch.equal(metric.measure(**facts), metric.measure(**facts))


def test_what_is_missing_is_named(network, images, saliency, target):
    with pytest.raises(ValueError, match="expected the method that made the maps"):
        Coherency().update(network, images, saliency, target)
    with pytest.raises(ValueError, match="expected the method that made the maps"):
        ADCC().update(network, images, saliency, target)
    with pytest.raises(ValueError, match="expected saliency_masked"):
        Coherency().update(saliency=saliency, saliency_masked=saliency[:, :4])
    with pytest.raises(ValueError, match="expected saliency="):
        Complexity().update()
    with pytest.raises(ValueError, match="average to be one of"):
        ADCC(average="image")
