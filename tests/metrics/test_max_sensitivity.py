"""Max-sensitivity: methods whose change is known."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, Gradient, InputXGradient, normalize
from interpretable_training.metrics import MaxSensitivity

PRODUCT = InputXGradient(reduce="signed_sum")


@pytest.fixture
def linear(function):
    w = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]]).double()

    def forward(x):
        return torch.stack([0 * x.flatten(1).sum(1), (x[:, 0] * w).sum((1, 2))], 1)

    return function(forward), w


@pytest.fixture
def x():
    return torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()


def test_a_method_that_ignores_the_image_does_not_change(network, images, target):
    S = FakeCAM()(network, images, target)
    values = MaxSensitivity(FakeCAM(), n=2).measure(model=network, images=images, saliency=S, target=target)
    assert values.tolist() == [0] * 5


@pytest.mark.parametrize("raw", [True, False])
def test_the_gradient_of_a_linear_model_does_not_change(linear, x, raw):
    model, _ = linear
    S = normalize(Gradient()(model, x, 1))
    values = MaxSensitivity(Gradient(), raw=raw).measure(model=model, images=x, saliency=S, target=1)
    assert_close(values, torch.zeros(4).double(), rtol=0, atol=1e-9)


def draws(radius, n, shape, seed=0):
    """e[j] as the seed gives it."""
    generator = torch.Generator().manual_seed(seed)
    return [(radius * (2 * torch.rand(shape, generator=generator) - 1)).double() for _ in range(n)]


def test_input_times_gradient_of_a_linear_model_by_hand(linear, x):
    """max over j of |w e[j]| / |w x|."""
    model, w = linear
    S = normalize(PRODUCT(model, x, 1))
    metric = MaxSensitivity(PRODUCT, radius=0.3, n=6, raw=True, seed=2)
    values = metric.measure(model=model, images=x, saliency=S, target=1)
    for image, value in zip(x, values):
        largest = max((w * e[0]).norm().item() for e in draws(0.3, 6, (1, 2, 3), seed=2))
        assert value.item() == pytest.approx(largest / (w * image[0]).norm().item(), abs=1e-7)


def test_maps_in_0_1_are_compared_by_default(linear, x):
    model, w = linear
    S = normalize(PRODUCT(model, x, 1))
    values = MaxSensitivity(PRODUCT, n=4).measure(model=model, images=x, saliency=S, target=1)
    for image, map_, value in zip(x, S, values):
        changes = []
        for e in draws(0.2, 4, (1, 2, 3)):
            again = w * (image + e)[0]
            again = (again - again.min()) / (again.max() - again.min())
            changes.append((again - map_).norm().item())
        assert value.item() == pytest.approx(max(changes) / map_.norm().item(), abs=1e-6)


def test_draws_fill_the_ball_and_do_not_leave_it(function):
    """For one pixel the ratio is |e| / |x| <= r / |x|, and close to it after many draws."""
    model, x = function(lambda z: z.flatten(1) * torch.tensor([[0.0, 2.0]])), torch.full((1, 1, 1, 1), 0.5).double()
    metric = MaxSensitivity(PRODUCT, radius=0.1, n=200, raw=True)
    value = metric.measure(model=model, images=x, saliency=torch.ones(1, 1, 1), target=1).item()
    assert 0.19 < value <= 0.2


def test_more_draws_find_no_less(linear, x):
    model, _ = linear
    S = normalize(PRODUCT(model, x, 1))
    few, many = (MaxSensitivity(PRODUCT, n=n).measure(model=model, images=x, saliency=S, target=1) for n in (3, 9))
    assert (few <= many).all()


def test_a_map_of_zeros_is_divided_by_one(linear, x):
    model, w = linear
    value = MaxSensitivity(PRODUCT, n=3, raw=True).measure(
        model=model, images=0 * x[:1], saliency=torch.zeros(1, 2, 3), target=1
    )
    largest = max((w * e[0]).norm().item() for e in draws(0.2, 3, (1, 2, 3)))
    assert value.item() == pytest.approx(largest, abs=1e-7)


def test_no_radius_no_change(linear, x):
    model, _ = linear
    S = normalize(PRODUCT(model, x, 1))
    values = MaxSensitivity(PRODUCT, radius=0.0, n=1).measure(model=model, images=x, saliency=S, target=1)
    assert_close(values, torch.zeros(4).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"radius": -0.1}, {"n": 0}])
def test_negative_radii_and_no_draws_are_refused(options):
    with pytest.raises(ValueError, match=r"(radius|n) as a (whole )?number of at least"):
        MaxSensitivity(**options)


def test_the_method_is_needed(network, images, saliency, target):
    with pytest.raises(ValueError, match="expected the method that made the maps"):
        MaxSensitivity().update(network, images, saliency, target)
