"""Input invariance where maps are zero or not numbers, of odd models and of wrong options."""

import pytest
import torch
from torch import nn

from interpretable_training.attribution import FakeCAM, Gradient, InputXGradient, IntegratedGradients
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.metrics import InputInvariance, SanityTable


@pytest.fixture
def linear():
    """Weights are tiny: what a map is compared with has to be the map."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    net[1].weight.data = 1e-9 * torch.randn(2, 432, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture
def photos():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def signed(method):
    return method(reduce="signed_sum")


def test_integrated_gradients_of_a_linear_model_differ_by_the_weights_times_the_shift(linear, photos):
    """From zero to x + m they are w (x + m), from m to x + m they are w x as before."""
    m = 0.5
    W = linear[1].weight[1].detach().double().view(3, 12, 12)
    S = (W * photos).sum(1)
    expected = ((W * m).sum(0).norm() / S.flatten(1).norm(dim=1)).mean()
    (found,) = InputInvariance(m)(linear, signed(IntegratedGradients), photos, 1)
    assert found.similarity["difference"] == pytest.approx(float(expected), rel=1e-4)
    assert found.passed is False
    a = signed(IntegratedGradients)(linear, photos, 1)
    b = IntegratedGradients(reduce="signed_sum", baseline=torch.full((3, 12, 12), m))(linear, photos + m, 1)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-12)


def test_a_black_image_has_a_map_of_zero_which_the_shift_changes(linear, photos):
    """x = 0: the product is 0 and then w m, which is another map however small the weights are."""
    (found,) = InputInvariance()(linear, InputXGradient(), torch.zeros_like(photos), 0)
    assert found.passed is False
    assert found.similarity["difference"] == 1
    (found,) = InputInvariance()(linear, {"zero": InputXGradient()}, torch.cat([photos, 0 * photos]), 0)
    assert 0 < found.similarity["difference"] < 1e3


def test_maps_that_are_zero_before_and_after_are_the_same(linear, photos):
    linear[1].weight.data[:] = 0
    (found,) = InputInvariance()(linear, InputXGradient(), photos, 0)
    assert (found.passed, found.similarity["difference"], found.n_undefined) == (True, 0, 0)


class NotANumber(Attribution):
    """Of the images whose first pixel says so."""

    def attribute(self, prepared, images, target):
        S = images.sum(1) * 0 + torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).double()
        S[images[:, 0, 0, 0] > 50] = torch.nan
        return S


def test_maps_that_are_not_numbers_are_left_out_and_counted(linear, photos):
    photos[1, 0, 0, 0] = 100
    (found,) = InputInvariance()(linear, NotANumber(), photos, 0)
    assert (found.passed, found.similarity["invariant"], found.n_undefined) == (True, 1, 1)
    (found,) = InputInvariance()(linear, NotANumber(), photos[1:2], 0)
    assert found.passed is None
    assert found.n_undefined == 1
    assert "1 comparisons left out, since a map is constant or not a number" in str(SanityTable([found]))


def test_a_share_of_the_images_is_enough_where_it_is_said(linear, photos):
    class Half(Gradient):
        def attribute(self, prepared, images, target):
            S = super().attribute(prepared, images, target)
            S[::2] += images[::2].sum(1)
            return S

    for share, passed in ((0.5, True), (0.51, False)):
        (found,) = InputInvariance(share=share)(linear, Half(), photos, 0)
        assert found.similarity["invariant"] == 0.5
        assert found.passed is passed
    assert f"on {0.5:.0%} of the images" in InputInvariance(share=0.5)(linear, Half(), photos, 0)[0].rule


def test_a_batch_is_the_mean_of_its_images(linear, photos):
    whole = InputInvariance(0.5)(linear, InputXGradient(), photos, 0)[0].similarity
    alone = [InputInvariance(0.5)(linear, InputXGradient(), x[None], 0)[0].similarity for x in photos]
    for kind, value in whole.items():
        assert value == pytest.approx(sum(one[kind] for one in alone) / 4)


class Caches(nn.Module):
    """Keeps what it computes of its parameters, as some attention layers do in eval mode."""

    def __init__(self):
        super().__init__()
        self.scale, self.kept, self.last, self.calls = nn.Parameter(torch.rand(3, 1, 1)), {}, None, 0

    def forward(self, x):
        self.calls += 1
        if not self.training:
            self.last = self.kept.setdefault("double", self.scale * 2)
        return (x * (self.scale * 2 if self.training else self.kept["double"])).mean((2, 3))


@pytest.mark.parametrize("double", [True, False])
def test_a_model_that_keeps_what_it_computed_is_as_it_was(photos, double):
    """What it would keep otherwise is in double precision."""
    net = Caches()
    assert InputInvariance(double=double)(net, Gradient(), photos)[0].passed is True
    assert (net.kept, net.last, net.calls) == ({}, None, 0)
    assert net.eval()(photos).dtype == torch.float32


def test_wrong_images_and_options_are_refused_with_the_word_that_helps(linear, photos):
    with pytest.raises(TypeError, match="expected floating point images, normalized as in training"):
        InputInvariance()(linear, Gradient(), photos.long())
    with pytest.raises(ValueError, match=r"expected images .* as a tensor, got list"):
        InputInvariance()(linear, Gradient(), [1, 2])
    with pytest.raises(ValueError, match="expected share as a part of the images, above 0 and at most 1, got 50"):
        InputInvariance(share=50)
    with pytest.raises(ValueError, match="expected similarity to be one of"):
        InputInvariance(similarity=("rank",))


def test_methods_that_never_look_at_the_model_are_invariant(linear, photos):
    assert InputInvariance(undo="input")(linear, FakeCAM(), photos)[0].passed is True
