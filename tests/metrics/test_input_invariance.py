"""Shifts that the network does not feel."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    FakeCAM,
    FullGrad,
    GradCAM,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
    TGrad,
)
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.metrics import InputInvariance, SanityTable
from interpretable_training.metrics.sanity.input_invariance import undone_at_input, undone_by_bias


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
    results = by_name(InputInvariance()(cnn, methods, photos))
    assert {name for name, check in results.items() if check.passed} == {"gradient", "guided", "smoothgrad", "gradcam"}
    assert results["gradient"].similarity["invariant"] == 1
    assert results["gradient"].similarity["difference"] == 0
    assert results["product"].similarity["invariant"] == 0
    assert results["product"].similarity["spearman"] < 1


def test_integrated_gradients_pass_where_the_baseline_is_shifted_too(cnn, photos):
    """The reference point of the shifted network, m itself, is known to be the same image: then nothing changes."""

    class Shifted(Attribution):
        def attribute(self, prepared, images, target):
            m = -1.0 if images.mean() < -0.5 else 0.0
            return IntegratedGradients(baseline=torch.full((3, 12, 12), m).to(images)).attribute(
                prepared, images, target
            )

    assert InputInvariance()(cnn, {"ig": Shifted()}, photos)[0].passed is True
    assert InputInvariance()(cnn, {"ig": IntegratedGradients()}, photos)[0].passed is False


def test_on_a_linear_model_the_product_differs_by_the_weights(linear, photos):
    """w * (x + m) - w * x = w m, summed over channels, against w * x."""
    m = (0.5, -1.0, 2.0)
    results = InputInvariance(shift=m)(linear, InputXGradient(reduce="signed_sum"), photos, 0)[0]
    W = linear[1].weight[0].detach().view(3, 12, 12)
    change = (W * torch.tensor(m).view(3, 1, 1)).sum(0)
    S = (W * photos).sum(1)
    expected = (change.norm() / S.flatten(1).norm(dim=1)).mean()
    assert results.similarity["difference"] == pytest.approx(float(expected), rel=1e-4)


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


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same", "dilation": 2}, {"groups": 3, "bias": False}])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_the_shift_undone_by_the_bias(photos, options, mode):
    """The second network is the first one on shifted images, at the borders too: what ignores biases cannot tell."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 6, 3, padding_mode=mode, **options)
        net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    methods = {"gradient": Gradient(), "gradcam": GradCAM("2"), "product": InputXGradient()}
    by_bias = by_name(InputInvariance(shift=(0.5, -1.0, 2.0), undo="bias")(net, methods, photos))
    assert {name for name, check in by_bias.items() if check.passed} == {"gradient", "gradcam"}
    assert "forward" not in vars(conv)
    assert not conv._forward_pre_hooks
    wrapped = by_name(InputInvariance(shift=(0.5, -1.0, 2.0))(net, methods, photos))
    for name, check in wrapped.items():
        assert by_bias[name].similarity == pytest.approx(check.similarity, rel=1e-6)


def test_only_a_changed_bias_keeps_decompositions_complete(photos):
    """FullGrad and T-Grad read biases: with the shift in the bias their parts still add up to the score.

    Without padding; around the image lies a constant that belongs to no bias.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    net, images = net.double(), photos.double()
    m = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    y = net(images)[:, 1].detach()
    with undone_by_bias([net[0]], m):
        assert_close(net(images + m)[:, 1], y)
        for method in (FullGrad(), TGrad()):
            assert_close(method.delta(net, images + m, 1), torch.zeros_like(y), atol=1e-12, rtol=0)
    with undone_at_input(net, m), pytest.warns(UserWarning, match="do not add up"):
        assert FullGrad().delta(net, images + m, 1).abs().min() > 0.01
    assert_close(net(images)[:, 1].detach(), y, rtol=0, atol=0)
    checks = InputInvariance(undo="bias")(net, {"fullgrad": FullGrad(), "tgrad": TGrad()}, photos)
    assert [check.passed for check in checks] == [False, False]


def test_a_network_whose_images_go_elsewhere_is_refused(photos):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) + x.mean()

    net = Sum()
    with pytest.raises(ValueError, match="nowhere else, got one that computes something else"):
        InputInvariance(undo="bias")(net, Gradient(), photos)
    assert "forward" not in vars(net.conv)
    with pytest.raises(ValueError, match="undo to be one of"):
        InputInvariance(undo="weight")


@pytest.fixture
def faint():
    """Weights are tiny: what a map is compared with has to be the map."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    net[1].weight.data = 1e-9 * torch.randn(2, 432, generator=torch.Generator().manual_seed(0))
    return net


def signed(method):
    return method(reduce="signed_sum")


def test_integrated_gradients_differ_by_weights_times_shift(faint, photos):
    """From zero to x + m they are w (x + m), from m to x + m they are w x as before."""
    m = 0.5
    W = faint[1].weight[1].detach().double().view(3, 12, 12)
    S = (W * photos).sum(1)
    expected = ((W * m).sum(0).norm() / S.flatten(1).norm(dim=1)).mean()
    (results,) = InputInvariance(m)(faint, signed(IntegratedGradients), photos, 1)
    assert results.similarity["difference"] == pytest.approx(float(expected), rel=1e-4)
    assert results.passed is False
    a = signed(IntegratedGradients)(faint, photos, 1)
    b = IntegratedGradients(reduce="signed_sum", baseline=torch.full((3, 12, 12), m))(faint, photos + m, 1)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-12)


def test_a_black_image_has_a_map_of_zero_which_the_shift_changes(faint, photos):
    """x = 0: the product is 0 and then w m, which is another map however small the weights are."""
    (results,) = InputInvariance()(faint, InputXGradient(), torch.zeros_like(photos), 0)
    assert results.passed is False
    assert results.similarity["difference"] == 1
    (results,) = InputInvariance()(faint, {"zero": InputXGradient()}, torch.cat([photos, 0 * photos]), 0)
    assert 0 < results.similarity["difference"] < 1e3


def test_maps_that_are_zero_before_and_after_are_the_same(faint, photos):
    faint[1].weight.data[:] = 0
    (results,) = InputInvariance()(faint, InputXGradient(), photos, 0)
    assert (results.passed, results.similarity["difference"], results.n_undefined) == (True, 0, 0)


class NotANumber(Attribution):
    """Of the images whose first pixel says so."""

    def attribute(self, prepared, images, target):
        S = images.sum(1) * 0 + torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).double()
        S[images[:, 0, 0, 0] > 50] = torch.nan
        return S


def test_maps_that_are_not_numbers_are_left_out_and_counted(faint, photos):
    photos[1, 0, 0, 0] = 100
    (results,) = InputInvariance()(faint, NotANumber(), photos, 0)
    assert (results.passed, results.similarity["invariant"], results.n_undefined) == (True, 1, 1)
    (results,) = InputInvariance()(faint, NotANumber(), photos[1:2], 0)
    assert results.passed is None
    assert results.n_undefined == 1
    assert "1 comparisons left out, since a map is constant or not a number" in str(SanityTable([results]))


def test_a_share_of_the_images_is_enough_where_it_is_said(faint, photos):
    class Half(Gradient):
        def attribute(self, prepared, images, target):
            S = super().attribute(prepared, images, target)
            S[::2] += images[::2].sum(1)
            return S

    for share, passed in ((0.5, True), (0.51, False)):
        (results,) = InputInvariance(share=share)(faint, Half(), photos, 0)
        assert results.similarity["invariant"] == 0.5
        assert results.passed is passed
    assert f"on {0.5:.0%} of the images" in InputInvariance(share=0.5)(faint, Half(), photos, 0)[0].rule


def test_a_batch_is_the_mean_of_its_images(faint, photos):
    whole = InputInvariance(0.5)(faint, InputXGradient(), photos, 0)[0].similarity
    alone = [InputInvariance(0.5)(faint, InputXGradient(), x[None], 0)[0].similarity for x in photos]
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
    """Values that would be kept otherwise are in double precision."""
    net = Caches()
    assert InputInvariance(double=double)(net, Gradient(), photos)[0].passed is True
    assert (net.kept, net.last, net.calls) == ({}, None, 0)
    assert net.eval()(photos).dtype == torch.float32


def test_input_invariance_refuses_wrong_images_and_options(faint, photos):
    with pytest.raises(TypeError, match="expected floating point images, normalized as in training"):
        InputInvariance()(faint, Gradient(), photos.long())
    with pytest.raises(ValueError, match=r"expected images .* as a tensor, got list"):
        InputInvariance()(faint, Gradient(), [1, 2])
    with pytest.raises(ValueError, match="expected share as a number above 0 and up to 1 for InputInvariance, got 50"):
        InputInvariance(share=50)
    with pytest.raises(ValueError, match=r"expected InputInvariance\.similarity to be one of"):
        InputInvariance(similarity=("rank",))


def test_methods_that_never_look_at_the_model_are_invariant(faint, photos):
    assert InputInvariance(undo="input")(faint, FakeCAM(), photos)[0].passed is True
