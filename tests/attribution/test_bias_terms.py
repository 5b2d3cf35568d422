"""Networks that FullGrad and T-Grad split without a rest, and their warnings about others."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.networks import residual
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from interpretable_training.attribution import FullGrad, TGrad, explain
from interpretable_training.attribution.core.map_operations import resize

METHODS = pytest.mark.parametrize("method", [FullGrad, TGrad])


def conv(inputs=3, outputs=6, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def tail(channels=6):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Net(nn.Module):
    """Two layers, a head, and how they run."""

    def __init__(self, run, a=None, b=None, head=None) -> None:
        super().__init__()
        self.a, self.b, self.head = a or conv(), b or conv(6, 6), head or tail()
        self.run = run
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
                nn.init.normal_(m.running_mean)
                nn.init.uniform_(m.running_var, 0.5, 2)

    def forward(self, x):
        return self.run(self, x)


def plain(net, x):
    return net.head(net.b(net.a(x).relu()).relu())


def patches(net, x):
    flat = F.unfold(x, 4, stride=4).transpose(1, 2).flatten(0, 1)
    return net.head(net.b(net.a(flat).relu()).relu()).unflatten(0, (len(x), -1)).mean(1)


def tiles(net, x):
    flat = F.unfold(x, 8, stride=8).transpose(1, 2).reshape(-1, 3, 8, 8)
    return plain(net, flat).unflatten(0, (len(x), -1)).mean(1)


def time_first(net, x):
    tokens = F.unfold(x, 4, stride=4).permute(2, 0, 1)
    return net.head(net.b(net.a(tokens).relu()).relu()).mean(0)


def part_in_place(net, x):
    z = net.a(x)
    z[:, 3:].mul_(-2)
    z[:, :3].relu_()
    return net.head(net.b(z).relu_())


NETS = {
    "transposed, grouped": lambda: Net(plain, b=nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=2)),
    "dilated, mirrored borders": lambda: Net(plain, conv(padding_mode="reflect"), nn.Conv2d(6, 6, 3, dilation=2)),
    "weight norm": lambda: Net(plain, nn.utils.parametrizations.weight_norm(conv())),
    "norm without affine": lambda: Net(plain, b=nn.Sequential(conv(6), nn.BatchNorm2d(6, affine=False))),
    "norm of features": lambda: Net(plain, head=nn.Sequential(tail(), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))),
    "leaky": lambda: Net(lambda n, x: n.head(F.leaky_relu(n.b(F.prelu(n.a(x), torch.ones(1).to(x) / 3)), 0.1))),
    "pools and upsampling": lambda: Net(
        lambda n, x: n.head(F.interpolate(F.max_pool2d(n.b(F.avg_pool2d(n.a(x), 2)), 3, 2).relu(), (9, 7)))
    ),
    "patches": lambda: Net(patches, nn.Linear(48, 6), nn.Linear(6, 6), nn.Linear(6, 4)),
    "tiles": lambda: Net(tiles),
    "tokens before images": lambda: Net(time_first, nn.Linear(48, 6), nn.Linear(6, 6), nn.Linear(6, 4)),
    "part in place": lambda: Net(part_in_place),
    "checkpoint": lambda: Net(lambda n, x: n.head(checkpoint(lambda x: n.b(n.a(x).relu()), x, use_reentrant=False))),
}


def build(name, nets=NETS):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets[name]().double().eval(), torch.randn(2, 3, 16, 24, dtype=torch.float64)


@pytest.mark.parametrize("name", NETS)
def test_bias_terms_of_many_networks_add_up_to_score(name):
    net, x = build(name)
    parts = TGrad().parts(net, x, 2)
    assert (parts.delta / net(x)[:, 2]).abs().max() < 1e-10
    for i in range(2):
        alone = TGrad().parts(net, x[i : i + 1], 2)
        assert_close(alone.residual[0], parts.residual[i])
        assert_close(alone.totals[:, 0], parts.totals[:, i])


FUNCTIONS = {
    "clip": lambda z: torch.clip(z, -0.1, 0.3),
    "clamp": lambda z: z.clamp_max(0.3).clamp_min(-0.2),
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda z: F.threshold(z, 0.1, 1.0),
    "selu": torch.selu,
    "softsign": F.softsign,
    "sigmoid": torch.sigmoid,
    "gelu in a checkpoint": lambda z: checkpoint(F.gelu, z, use_reentrant=False),
    "relu6 in place": lambda z: F.relu6(9 * z, inplace=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_implicit_biases_of_activations_complete_the_score(name):
    net, x = build("x", {"x": lambda: Net(lambda n, x: n.head(FUNCTIONS[name](n.b(n.a(x)))))})
    y = net(x)[:, 2]
    assert (TGrad(implicit=True).delta(net, x, 2) / y).abs().max() < 1e-10
    with pytest.warns(UserWarning, match="implicit=True adds"):
        assert (FullGrad().delta(net, x, 2) / y).abs().max() > 1e-3


@METHODS
@pytest.mark.parametrize("size", [(16, 24), (24, 16)])
def test_bias_terms_of_channels_last_equal_channels_first(method, size):
    """The same network as convolutions of one cell and as linear layers of each cell, as ConvNeXt has them."""
    up, down = nn.Linear(6, 20, bias=False), nn.Linear(20, 6, bias=False)
    first = Net(lambda n, x: n.head(F.conv2d(F.gelu(F.conv2d(n.a(x), up.weight[..., None, None])), small(down))))
    last = Net(lambda n, x: n.head(down(F.gelu(up(n.a(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)))
    last.load_state_dict(first.state_dict())
    up.requires_grad_(False)
    down.requires_grad_(False)
    x = torch.randn(2, 3, *size)
    for net in (first, last):
        net.a.stride = (2, 2)
    assert_close(method(implicit=True)(last, x, 1), method(implicit=True)(first, x, 1), rtol=1e-4, atol=1e-6)


def small(layer):
    return layer.weight[..., None, None]


def said(net, x, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        missing = TGrad(**options).delta(net, x, 2)
    return missing / net(x)[:, 2].detach(), [str(w.message) for w in caught]


def test_bias_warning_states_percent_of_score_if_parts_cancel():
    """The bias 99.5 and the image's part of it, -98.5, leave a score of 1: a constant of 0.05 is 5 % of it."""
    net = Net(lambda n, x: n.head((x + 0.05).mean((2, 3))), head=nn.Linear(3, 4)).double()
    nn.init.constant_(net.head.weight, 1 / 3)
    nn.init.constant_(net.head.bias, 99.5)
    x = torch.full((2, 3, 4, 4), -98.55, dtype=torch.float64)
    share, messages = said(net, x)
    assert_close(share, torch.full((2,), -0.05, dtype=torch.float64))
    assert "5 % of it" in messages[0]
    assert "constants" in messages[0]


def test_bias_warning_ignores_rounding():
    """In float32 the biases +1e6 and -1e6 leave a score of 1, wrong by some percent."""
    net = Net(lambda n, x: n.head(n.a(x).mean((2, 3))), head=nn.Linear(6, 4))
    nn.init.constant_(net.a.bias, 1e6 + 1 / 3)
    nn.init.eye_(net.head.weight)
    nn.init.constant_(net.head.bias, -1e6)
    assert said(net, torch.randn(2, 3, 8, 8))[1] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_warning_is_silent_in_half_precision(dtype):
    """Where rounding alone can be a percent."""
    net, x = build("x", {"x": lambda: Net(lambda n, x: n.head(n.a(x).tanh()))})
    assert len(said(net, x)[1]) == 1
    assert said(net.to(dtype), x.to(dtype))[1] == []


def test_bias_of_linear_layer_on_cells_is_residual():
    last = nn.Linear(6, 6)
    net, x = build("x", {"x": lambda: Net(lambda n, x: n.head(last(n.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))})
    last.double()
    parts = TGrad().parts(net, x, 2)
    assert len(parts.maps) == 2
    assert_close(parts.residual, (net.head[2].weight[2] @ last.bias + net.head[2].bias[2]).detach().expand(2))


def test_bias_terms_of_batch_norm_in_train_mode():
    """What it subtracts is the mean of the images, no constant."""
    norm = nn.BatchNorm2d(3).double().train()
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.bias)
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 16, 4, bias=False)).double().train()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    slope = net[2].weight[1].unflatten(0, (3, 4, 4)).detach()
    expected = (g * x).abs().sum(1) + (slope * norm.bias[:, None, None].detach()).abs().sum(0)
    with pytest.warns(UserWarning, match="batch norm of the batch"):
        S = FullGrad(rescale="none")(net, x, 1, keep_mode=True)
    assert_close(S, expected)


def test_bias_warning_survives_nan_image_in_batch():
    net, x = build("x", {"x": lambda: Net(lambda n, x: n.head(n.a(x).tanh()))})
    x[0, 0, 0, 0] = torch.nan
    assert len(said(net, x)[1]) == 1


def test_bias_warning_suggests_implicit_only_where_it_helps():
    smooth, x = build("x", {"x": lambda: Net(lambda n, x: n.head(n.a(3 * x).tanh()))})
    assert "implicit=True" in said(smooth, x)[1][0]
    assert "implicit=True" not in "".join(said(smooth, x, implicit=True)[1])
    groups = nn.Sequential(conv(), nn.GroupNorm(2, 6), nn.ReLU(), tail()).double()
    nn.init.normal_(groups[1].bias)
    assert "implicit=True" not in said(groups, x)[1][0]


@METHODS
@pytest.mark.parametrize("rescale", ["layer", "channel", "none"])
def test_bias_terms_share_no_memory_and_repeat_bit_equal(method, rescale):
    """A map is that of the parts, twice the same, alone or with others; what it was made of stays as it was."""
    net, x = residual()
    pixels, options = x.clone(), {"rescale": rescale} if method is FullGrad else {}
    first = method(**options)(net, x, 1)
    first_copy = first.clone()
    together = explain({"a": method(**options), "b": TGrad(), "c": FullGrad()}, net, x, 1)
    for S in (together["a"], method(**options)(net, x, 1), first):
        assert torch.equal(S, first_copy)
    assert torch.equal(x, pixels)
    parts = TGrad().parts(net, x, 1)
    copies = [S.clone() for S in parts.maps]
    expected = 0
    for S, v in zip(parts.maps, parts.scores):
        up = resize(S, x.shape[2:])
        expected = expected + v[:, None, None] * up / up.sum((1, 2), keepdim=True).clamp(min=1e-300)
    assert_close(TGrad()(net, x, 1), expected)
    assert all(torch.equal(S, copy) for S, copy in zip(parts.maps, copies))
    pointers = [t.data_ptr() for t in (*parts.maps, parts.scores, parts.totals, parts.residual, parts.delta, x)]
    assert len(set(pointers)) == len(pointers)
    assert not any(t.requires_grad for t in (*parts.maps, *parts[1:]))


@METHODS
@pytest.mark.parametrize("target", ["topk:2", [[0, 1], [1, 2], [2, 0]]])
def test_delta_refuses_several_classes_per_image(method, target):
    net, x = residual()
    with pytest.raises(ValueError, match=r"one class per image.*\(3, 2\)"):
        method().delta(net, x, target if isinstance(target, str) else torch.tensor(target))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"])
def test_bias_terms_of_torchvision_networks_add_up_to_score(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=4)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.normal_(m.bias, 0, 0.3)
    x = torch.randn(2, 3, 64, 96)
    assert said(net.eval(), x, implicit=True)[1] == []
    share, messages = said(net.double(), x.double(), implicit=True)
    assert share.abs().max() < 1e-10
    assert messages == []
