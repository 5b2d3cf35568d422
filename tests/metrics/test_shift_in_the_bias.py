"""The network that undoes a shift by the bias of its first convolution, against one that is built by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FullGrad, Gradient, InputXGradient, TGrad
from interpretable_training.metrics import InputInvariance
from interpretable_training.metrics.sanity.input_invariance import undone_by_bias

pytestmark = pytest.mark.filterwarnings("ignore:image and biases do not add up", "ignore:Using padding=")

M = (0.5, -1.0, 2.0)
READERS = {"fullgrad": FullGrad(), "tgrad": TGrad(), "product": InputXGradient()}
CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (5, 2), "stride": (2, 3), "padding": (3, 0), "bias": False},
    {"kernel_size": 3, "dilation": (2, 3), "padding": 4},
    {"kernel_size": (4, 2), "padding": "same"},
    {"kernel_size": 3, "groups": 3, "padding": 1, "stride": 2},
    {"kernel_size": 1, "padding": 2},
    {"kernel_size": 8, "stride": 8},
]


def behind(conv):
    """A network of which it is the first layer."""
    rest = nn.Conv2d(conv.out_channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(conv, nn.ReLU(), *rest).double().eval()


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def photos():
    return torch.randn(3, 3, 17, 24, generator=torch.Generator().manual_seed(1)).double()


def by_hand(net, m):
    """The second network: m around the images, written out, and b' = b - W m, one weight after the other."""
    old = net[0]
    total = [d * (k - 1) for d, k in zip(old.dilation, old.kernel_size)]
    sides = [(t // 2, t - t // 2) for t in total] if old.padding == "same" else [(p, p) for p in old.padding]

    class Surrounded(nn.Module):
        def forward(self, z):
            (top, bottom), (left, right) = sides
            H, W = z.shape[2:]
            around = torch.tensor(m).to(z).view(1, 3, 1, 1).repeat(len(z), 1, top + H + bottom, left + W + right)
            around[:, :, top : top + H, left : left + W] = z
            return around

    new = nn.Conv2d(3, old.out_channels, old.kernel_size, old.stride, 0, old.dilation, old.groups).double()
    new.weight.data.copy_(old.weight.data)
    per_group = 3 // old.groups
    for k in range(old.out_channels):
        group = k // (old.out_channels // old.groups)
        b = 0.0 if old.bias is None else old.bias[k].item()
        for c in range(per_group):
            b -= old.weight[k, c].sum().item() * m[group * per_group + c]
        new.bias.data[k] = b
    return nn.Sequential(Surrounded(), new, *net[1:])


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_maps_are_those_of_a_network_built_by_hand(photos, options):
    """Also those that read biases; a wrong share of the bias would change them and leave the scores as they are."""
    net = behind(nn.Conv2d(3, 6, **options))
    second, z, target = by_hand(net, M), photos + torch.tensor(M).view(1, 3, 1, 1), net(photos).argmax(1)
    assert_close(second(z), net(photos))
    results = {check.method: check for check in InputInvariance(M, undo="bias")(net, READERS, photos)}
    for name, method in READERS.items():
        a, b = method(net, photos, target), method(second, z, target)
        expected = float(((a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).mean())
        assert results[name].similarity["difference"] == pytest.approx(expected, rel=1e-9)
        assert results[name].passed is False


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_what_is_padded_with_the_image_is_shifted_with_it(photos, mode):
    """Then nothing but the bias changes, and decompositions stay complete with padding."""
    net = behind(nn.Conv2d(3, 6, 5, padding=2, padding_mode=mode))
    m = torch.tensor(M).double().view(1, 3, 1, 1)
    y, b = net(photos)[:, 1].detach(), net[0].bias.detach().clone()
    with undone_by_bias([net[0]], m):
        assert_close(net[0].bias, b - (net[0].weight * m).sum((1, 2, 3)))
        assert_close(net(photos + m)[:, 1], y)
        assert_close(FullGrad().delta(net, photos + m, 1), torch.zeros_like(y), atol=1e-12, rtol=0)
    assert torch.equal(net[0].bias, b)
    assert not net[0]._forward_hooks


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv1d, (40,)), (nn.Conv3d, (9, 8, 10))])
def test_signals_and_volumes(kind, size):
    net = nn.Sequential(kind(2, 5, 4, padding="same"), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(2))
    results = InputInvariance((0.5, -1.0), undo="bias")(net, [Gradient(), InputXGradient()], x)
    assert [check.passed for check in results] == [True, False]
    assert {"spearman", "spearman_abs"} <= set(results[1].similarity)


def test_by_hand_on_one_convolution_without_padding():
    """f = mean of (W x + b): FullGrad's parts are W (x + m) and b - W m, whose magnitudes it adds."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    net[0].weight.data.fill_(2.0)
    net[0].bias.data.fill_(1.0)
    x, m = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)).double(), -3.0
    (check,) = InputInvariance(m, undo="bias")(net, FullGrad(rescale="none"), x)
    before = (2 * x[0, 0] + 1) / 144
    after = ((2 * (x[0, 0] + m)).abs() + 7) / 144
    assert check.similarity["difference"] == pytest.approx(float((before - after).norm() / before.norm()))


class Standardized(nn.Conv2d):
    """Its own forward, which computes weights and pads as it likes."""

    def forward(self, input):
        W = self.weight - self.weight.mean((1, 2, 3), keepdim=True) + 0.1
        return F.conv2d(F.pad(input, (0, 2, 1, 1)), W, self.bias, self.stride)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x):
        return (self.conv(x).relu() * self.conv(x.clone()).sigmoid()).mean((2, 3))


class TwoStems(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 8, 4, bias=False)

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        return {"scores": self.fine(x).relu().mean((2, 3)) * self.coarse(x).relu().mean((2, 3)), "rest": x}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: behind(Standardized(3, 6, 3, stride=2)), {}),
        (lambda: behind(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, padding=1))), {}),
        (lambda: behind(nn.Conv2d(3, 6, 3, padding=1)).to(memory_format=torch.channels_last), {}),
        (lambda: torch.compile(behind(nn.Conv2d(3, 6, 3, padding=1)), backend="eager"), {}),
        (lambda: behind(nn.Conv2d(3, 6, 3, padding=1)), {"target": torch.tensor([[0, 1], [2, 3], [1, 2]])}),
        (Siamese, {}),
        (TwoStems, {"output": "scores"}),
        (TwoStems, {"target": lambda output: output["scores"][:, 0]}),
    ],
    ids=["own forward", "computed", "channels last", "compiled", "two targets", "twice", "two", "callable"],
)
def test_networks_of_many_kinds(photos, make, options):
    results = InputInvariance(M, undo="bias")(make(), [Gradient(), InputXGradient()], photos, **options)
    assert [check.passed for check in results] == [True, False]


def test_padding_that_was_changed_later(photos):
    net = behind(nn.Conv2d(3, 6, 3, padding=1))
    net[0].padding = (0, 0)
    assert InputInvariance(M, undo="bias")(net, Gradient(), photos)[0].passed is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_models_own_precision_and_autocast(photos, dtype):
    """Rounding is large there; it must neither make another network of it nor another map."""
    net = behind(nn.Conv2d(3, 6, 3, padding=1))
    (low,) = InputInvariance(0.5, undo="bias", double=False)(net.to(dtype), Gradient(), photos.to(dtype))
    assert low.passed is True
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = InputInvariance(0.5, undo="bias", double=False)(net.float(), Gradient(), photos.float())
        (exact,) = InputInvariance(0.5, undo="bias")(net, Gradient(), photos.float())
    assert cast.passed is True
    assert exact.passed is True


def test_a_forward_of_its_own_and_hooks_stay(photos):
    net, calls = behind(nn.Conv2d(3, 6, 3, padding=1, bias=False)), []
    forward = net[0].forward
    net[0].forward = mine = lambda z: calls.append(1) or forward(z)
    handle = net[0].register_forward_hook(lambda *_: None)
    assert InputInvariance(undo="bias")(net, Gradient(), photos)[0].passed is True
    assert net[0].forward is mine
    assert list(net[0]._forward_hooks) == [handle.id]
    assert net[0].bias is None


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x).relu()).mean((2, 3))


class Beside(Siamese):
    def forward(self, x):
        return super().forward(x) + 1e-3 * x.mean((1, 2, 3))[:, None]


class Normalized(Siamese):
    def forward(self, x):
        return super().forward(x.sub_(0.4).div_(0.2))


@pytest.mark.parametrize(
    ("network", "message"),
    [(Reused, "and nowhere else"), (Beside, "and nowhere else"), (Normalized, "none sees them as they are")],
)
def test_networks_that_are_refused_stay_as_they_are(photos, network, message):
    net, images = network().double(), photos.clone()
    before = {name: (id(t), t.clone()) for name, t in net.named_parameters()}
    with pytest.raises(ValueError, match=message):
        InputInvariance(undo="bias")(net, Gradient(), images)
    assert torch.equal(images, photos)
    assert not net.conv._forward_hooks
    assert not net.conv._forward_pre_hooks
    for name, t in net.named_parameters():
        assert id(t) == before[name][0]
        assert torch.equal(t, before[name][1])
    assert InputInvariance()(net, Gradient(), images)[0].passed is True  # as the message says


@pytest.mark.parametrize("double", [True, False])
def test_units_that_are_exactly_zero_stay_zero(photos, double):
    """Where the image is 0 and there is no bias, what rounding makes of W m - W m must not turn a ReLU on."""
    net = behind(nn.Conv2d(3, 6, 3, padding=1, bias=False)).float()
    photos[:, :, 4:12, 4:12] = 0
    (results,) = InputInvariance(-0.7, undo="bias", double=double)(net, Gradient(), photos.float())
    assert (results.passed, results.similarity["difference"]) == (True, 0)


def test_an_image_that_is_not_a_number_does_not_make_another_network(photos):
    """It is left out by itself; the others are compared."""
    photos[1] = torch.nan
    net = behind(nn.Conv2d(3, 6, 3, padding=1))
    (results,) = InputInvariance(M, undo="bias")(net, InputXGradient(), photos)
    (alone,) = InputInvariance(M, undo="bias")(net, InputXGradient(), photos[[0, 2]])
    assert results.n_undefined == 1
    assert results.similarity == pytest.approx(alone.similarity)
