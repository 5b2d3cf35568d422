import numpy as np
import pytest
import torch
import torchvision
from support.networks import pyramid
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import PolyCAM
from interpretable_training.attribution.core.auto_layer import scale_layers
from interpretable_training.attribution.core.map_operations import resize
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model
from interpretable_training.attribution.poly_cam import _scale_by_percentiles

# As the authors list them.
RESNET50 = ("resnet50", "relu layer1 layer2 layer3 layer4")
VGG16 = ("vgg16", "features.3 features.8 features.15 features.22 features.29")


@pytest.fixture
def net():
    return pyramid(8)


def q(v):
    """One channel or map, by numpy."""
    low, high = np.percentile(v.numpy(), [0.1, 99.9])
    return ((v - low) / max(high, 1e-12)).clamp(0, 1)


def by_hand(net, x, target, variant, lnorm=True):
    """The stages of one image (C, H, W), layer by layer and channel by channel."""

    def p(image):
        return float(net(image[None]).detach().softmax(1)[0, target])

    P, stages = None, []
    for depth in (8, 5, 2):
        A = net[:depth](x[None])[0].detach()
        M = torch.zeros_like(A[0])
        for channel in A:
            H = resize(q(channel)[None], (8, 8))[0]
            plus, minus = p(H * x), p(x) - p((1 - H) * x)
            weight = {"+": plus, "-": max(minus, 0), "+-": max(plus + minus, 0)}[variant]
            M += weight * channel
        M = M.clamp(min=0)
        if P is not None:
            local = resize(resize(M[None], P.shape), M.shape)[0].clamp(min=1e-12)
            M = ((M / local if lnorm else M) * resize(P[None], M.shape)[0]).clamp(min=0)
        P = M
        stages.append(resize(q(P)[None], (8, 8))[0])
    return stages


@pytest.mark.parametrize("variant", ["+", "-", "+-"])
@pytest.mark.parametrize("lnorm", [True, False])
def test_poly_cam_stages_equal_printed_formula(variant, lnorm, net, images):
    method = PolyCAM(variant, lnorm=lnorm, chunk_size=3)
    stages = method.stages(net, images, torch.tensor([2, 0]))
    assert list(stages) == ["7", "4", "1"]
    for i, target in enumerate([2, 0]):
        for stage, expected in zip(stages.values(), by_hand(net, images[i], target, variant, lnorm)):
            assert_close(stage[i], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(method(net, images, torch.tensor([2, 0])), stages["1"])


def test_poly_cam_of_constant_model_by_hand(function, images):
    """p does not move: "+" and "+-" weigh every channel with p, "-" with 0."""
    conv = nn.Conv2d(2, 4, 3, 2, 1).double()
    logits = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    net = function(lambda x, conv: logits + 0 * conv(x).sum((1, 2, 3))[:, None], conv=conv)
    maps = {v: PolyCAM(v, layers=["conv"])(net, images, 0) for v in ("+", "-", "+-")}
    M = conv(images).sum(1).relu().detach()  # times p, which q takes away
    assert_close(maps["+"], resize(_scale_by_percentiles(M, 1), (8, 8)))
    assert_close(maps["+-"], maps["+"])
    assert not maps["-"].any()


def test_poly_cam_percentiles_equal_numpy():
    v = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(_scale_by_percentiles(v, 2), torch.stack([torch.stack([q(c) for c in image]) for image in v]))
    assert_close(_scale_by_percentiles(v[:, 0], 1), torch.stack([q(image[0]) for image in v]))
    assert not _scale_by_percentiles(torch.zeros(2, 3, 1, 1), 2).any()


def test_poly_cam_local_mean_of_constant_map_is_one():
    P = torch.rand(1, 2, 2)
    assert_close(PolyCAM()._refine(torch.full((1, 8, 8), 3.0), P), resize(P, (8, 8)))


def test_poly_cam_of_signals():
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 3), nn.Flatten(), nn.Linear(21, 3)
    )
    S = PolyCAM()(net, torch.randn(2, 2, 20))
    assert S.shape == (2, 20)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", "relu layer1 layer2 layer3 layer4"),
        pytest.param(*RESNET50, marks=pytest.mark.slow),
        pytest.param(*VGG16, marks=pytest.mark.slow),
        ("mobilenet_v2", "features.1 features.3 features.6 features.13 features"),
    ],
)
def test_scale_layers_are_last_of_each_grid_size(name, names):
    model = torchvision.models.get_model(name, weights=None)
    with prepare_model(model) as prepared:
        layers = scale_layers(prepared, prepare(prepared, torch.randn(1, 3, 64, 64)))
    assert [c.name for c in layers] == names.split()
    cells = [c.grid.shape[0] for c in layers]
    assert cells == sorted(cells, reverse=True)


def test_poly_cam_refuses_model_without_grid(linear, images):
    with pytest.raises(ValueError, match="pass layers="):
        PolyCAM()(linear(torch.randn(3, 128)), images)
