"""Shifts that the network does not feel."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    GradCAM,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
)
from interpretable_training.attribution.base import Attribution
from interpretable_training.metrics import InputInvariance


@pytest.fixture
def linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    net[1].weight.data = torch.randn(2, 432, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture
def photos():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def cnn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        return nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


def by_name(checks):
    return {check.method: check for check in checks}


def test_what_the_literature_says(cnn, photos):
    methods = {
        "gradient": Gradient(),
        "guided": GuidedBackprop(),
        "smoothgrad": SmoothGrad(n=3),
        "gradcam": GradCAM("2"),
        "product": InputXGradient(),
        "ig": IntegratedGradients(),
    }
    found = by_name(InputInvariance()(cnn, methods, photos))
    assert {name for name, check in found.items() if check.passed} == {"gradient", "guided", "smoothgrad", "gradcam"}
    assert found["gradient"].similarity["invariant"] == 1
    assert found["gradient"].similarity["difference"] == 0
    assert found["product"].similarity["invariant"] == 0
    assert found["product"].similarity["spearman"] < 1


def test_integrated_gradients_pass_where_the_baseline_is_shifted_too(cnn, photos):
    """The reference point of the shifted network, m itself, is known to be the same image: then nothing changes."""

    class Shifted(Attribution):
        def attribute(self, observed, images, target):
            m = -1.0 if images.mean() < -0.5 else 0.0
            return IntegratedGradients(baseline=torch.full((3, 12, 12), m).to(images)).attribute(
                observed, images, target
            )

    assert InputInvariance()(cnn, {"ig": Shifted()}, photos)[0].passed is True
    assert InputInvariance()(cnn, {"ig": IntegratedGradients()}, photos)[0].passed is False


def test_on_a_linear_model_the_product_differs_by_the_weights(linear, photos):
    """w * (x + m) - w * x = w m, summed over channels, against w * x."""
    m = (0.5, -1.0, 2.0)
    found = InputInvariance(shift=m)(linear, InputXGradient(reduce="signed_sum"), photos, 0)[0]
    W = linear[1].weight[0].detach().view(3, 12, 12)
    change = (W * torch.tensor(m).view(3, 1, 1)).sum(0)
    S = (W * photos).sum(1)
    expected = (change.norm() / S.flatten(1).norm(dim=1)).mean()
    assert found.similarity["difference"] == pytest.approx(float(expected), rel=1e-4)


def test_the_model_is_as_it_was(cnn, photos):
    before = {name: (id(t), t._version, t.clone()) for name, t in cnn.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    InputInvariance()(cnn.train(), Gradient(), photos)
    assert cnn.training
    assert not cnn._forward_pre_hooks
    assert torch.equal(state, torch.get_rng_state())
    for name, t in cnn.state_dict(keep_vars=True).items():
        assert (id(t), t._version) == before[name][:2]
        assert_close(t, before[name][2], rtol=0, atol=0)


def test_in_the_models_own_precision(cnn, photos):
    assert InputInvariance(double=False, share=0.5)(cnn, Gradient(), photos)[0].passed is True
    assert InputInvariance(double=False)(cnn.double(), Gradient(), photos.double())[0].passed is True


def test_one_shift_per_channel():
    with pytest.raises(ValueError, match="expected one shift, or one for each of 3 channels, got 2"):
        InputInvariance(shift=(1.0, 2.0))(nn.Flatten(), Gradient(), torch.zeros(1, 3, 4, 4))
