"""Theorems for methods that hide parts of the image, for any network, and the errors of their options."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import RISE, ExtremalPerturbation, Occlusion, PolyCAM, ScoreCAM
from interpretable_training.attribution.core.map_operations import resize
from interpretable_training.attribution.poly_cam import _scale_by_percentiles

MASKS = {
    "occlusion": Occlusion(4, 3),
    "rise": RISE(n=15, cells=3),
    "polycam": PolyCAM(),
    "extremal": ExtremalPerturbation(steps=4, step=4, sigma=6.0, blur_sigma=3.0),
}
SEEN_THROUGH = {"rise": RISE, "polycam": PolyCAM, "polycam-": lambda **black: PolyCAM("-", **black)}


class Scaled(nn.Module):
    """A network of images normalized with `mean` and `std`, which it gets as pixels."""

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x - self.mean) / self.std)


@pytest.fixture
def convolutions() -> nn.Module:
    """Two scales of features, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fine = [nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*fine, nn.Conv2d(4, 5, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).double()


def test_occlusion_patches_add_up_to_score_of_linear_model(linear, images):
    """A pixel holds its patch's whole difference: over the patch's size they sum to y(x) - y(value everywhere)."""
    w = torch.randn(1, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = Occlusion((3, 4), (3, 4), value=0.1)(linear(w), images)
    rows = torch.tensor([3, 3, 3, 3, 3, 3, 2, 2]).view(8, 1)  # the last row of patches is cut
    assert_close((S / (rows * 4)).sum((1, 2)), ((images - 0.1).flatten(1) @ w.T)[:, 0])


def test_occlusion_accepts_a_value_per_image(network, images):
    """For example its blurred self."""
    value = images.flip(3) / 2
    both = Occlusion(3, 2, value=value, chunk_size=5)(network, images, 1)
    for i in range(2):
        assert_close(both[i], Occlusion(3, 2, value=value[i])(network, images[i : i + 1], 1)[0])


def test_rise_empirical_of_constant_model_is_flat(function, images):
    logits = torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)
    S = RISE(n=60, normalizer="empirical")(function(lambda x: logits.expand(len(x), 3)), images, 2)
    assert_close(S, logits.softmax(0)[2].expand(2, 8, 8))


def test_rise_of_one_cell_keeps_or_hides_the_image(network, images):
    p = network(images).softmax(1)[:, 1, None, None].detach()
    method = RISE(n=40, cells=1, p1=0.3)
    share = method._masks(images).grid.mean()
    assert 0 < share < 1
    assert_close(method(network, images, 1), (p * share / 0.3).expand(2, 8, 8))


@pytest.mark.parametrize("shape", [(30,), (16, 21), (6, 7, 9)])
def test_rise_keeps_each_pixel_with_probability_p1(shape):
    masks = RISE(n=3000, cells=3, p1=0.3)._masks(torch.zeros(1, 1, *shape, dtype=torch.float64))
    M = masks.at(torch.arange(3000))
    assert M.shape == (3000, *shape)
    assert M.min() == 0
    assert M.max() == 1
    assert (M.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / 3000) ** 0.5


def test_rise_masks_of_volumes_are_upsampled_grids(function):
    images = torch.zeros(1, 1, 5, 6, 8, dtype=torch.float64)
    masks = RISE(n=4, cells=2, borders="replicate")._masks(images)
    up = nn.functional.interpolate(masks.grid[:, None], [9, 9, 12], mode="trilinear")[:, 0]
    for i, M in enumerate(masks.at(torch.arange(4))):
        a, b, c = (int(offset[i]) for offset in masks.offsets)
        assert_close(M, up[i, a : a + 5, b : b + 6, c : c + 8])


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_masking_methods_black_is_zero_pixel(name, convolutions, images):
    """With `mean` and `std` a network of normalized images is masked as one that normalizes by itself."""
    mean, std = [0.4, 0.1], [0.5, 2.0]
    pixels = images.sigmoid()
    options = {"n": 12, "cells": 3} if name == "rise" else {}
    net = Scaled(convolutions, mean, std)
    normalized = (pixels - net.mean) / net.std
    black = SEEN_THROUGH[name](mean=mean, std=std, **options)(convolutions, normalized, 1)
    assert_close(black, SEEN_THROUGH[name](**options)(net, pixels, 1))
    assert not torch.allclose(black, SEEN_THROUGH[name](**options)(convolutions, normalized, 1))


def test_poly_cam_of_one_layer_equals_score_cam(function, images):
    """More than 0.2 % of the cells of a channel are at its ends, 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Sequential(nn.Conv2d(2, 6, 3, 1, 1), nn.Hardtanh(0, 1)).double()
        head = nn.Linear(6, 3).double()
    net = function(lambda x, conv, head: head(conv(4 * x).mean((2, 3))), conv=conv, head=head)
    A = conv(4 * images)
    assert ((A == 0).flatten(2).sum(2) > 1).all()
    assert ((A == 1).flatten(2).sum(2) > 1).all()
    peer = ScoreCAM(layer="conv", weights="raw", score="prob")(net, images, 2)
    assert_close(PolyCAM("+", layers=["conv"])(net, images, 2), _scale_by_percentiles(peer, 1))


def test_poly_cam_ignores_unit_of_features(convolutions, images):
    """Three times the features of a layer, a third of the next one's weights: the same network, the same map."""
    before = PolyCAM()(convolutions, images, 1)
    with torch.no_grad():
        for p in convolutions[0].parameters():
            p.mul_(3)
        convolutions[3].weight.div_(3)
    assert_close(PolyCAM()(convolutions, images, 1), before)


def test_poly_cam_layer_of_one_cell_keeps_finer_map(images, convolutions):
    """A single cell has no places: up(P) is constant, and q takes its height away."""
    net = nn.Sequential(*convolutions[:5], nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 3).double())
    with torch.no_grad():
        net[7].weight.abs_()  # so that "+" gives the cell weight
    names = ["4", "5"]
    coarse = PolyCAM("+", layers=names, lnorm=False)(net, images, 1)
    assert_close(coarse, PolyCAM("+", layers=["4"])(net, images, 1))
    assert coarse.shape == (2, 8, 8)
    assert_close(resize(coarse, (8, 8)), coarse)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_masking_methods_keep_nan_in_its_image(name, bad, convolutions, images):
    whole = MASKS[name](convolutions, images, 1)
    broken = images.clone()
    broken[0, 1, 2, 3] = bad
    S = MASKS[name](convolutions, broken, 1)
    assert not S[0].isfinite().any()
    assert_close(S[1], whole[1])


@pytest.mark.parametrize("name", MASKS)
def test_masking_methods_treat_one_logit_as_two_classes(name, convolutions, images):
    """The second one's logit against 0: what is explained, p, is the same."""
    two = nn.Sequential(convolutions, nn.Linear(3, 2).double())
    with torch.no_grad():
        two[1].weight[0], two[1].bias[0] = 0, 0
    one = nn.Sequential(convolutions, nn.Linear(3, 1).double())
    with torch.no_grad():
        one[1].weight.copy_(two[1].weight[1:])
        one[1].bias.copy_(two[1].bias[1:])
    method = type(MASKS[name])(**{**vars(MASKS[name]), "score": "prob"})
    for target in (0, 1):
        assert_close(method(one, images, target), method(two, images, target))


@pytest.mark.parametrize("name", MASKS)
def test_masking_methods_of_constant_images_are_finite(name, convolutions):
    for value in (0.0, 2.0):
        S = MASKS[name](convolutions, torch.full((1, 2, 8, 8), value, dtype=torch.float64), 0)
        assert S.isfinite().all()


def test_rise_counts_no_mask_twice_after_out_of_memory(function, images, monkeypatch):
    """The chunk is repeated: nothing of its first try may stay."""
    net = function(lambda x: x.flatten(1)[:, :3])
    method = RISE(n=12, cells=3, chunk_size=8)
    expected, whole, calls = method(net, images, 1), torch.Tensor.sum, []

    def sum_without_memory(self, *args, **options):
        calls.append(self.shape)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return whole(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "sum", sum_without_memory)
    assert_close(method(net, images, 1), expected)
    assert len(calls) > 2


@pytest.mark.parametrize(("patch", "stride"), [(2.5, 1), (4, 1.5), ((4, 2.5), 1)])
def test_occlusion_refuses_patches_of_other_than_whole_pixels(patch, stride):
    with pytest.raises(ValueError, match=r"expected (patch|stride) as a whole number .* for Occlusion, got"):
        Occlusion(patch, stride)


@pytest.mark.parametrize(("patch", "stride"), [((4,), 2), ([4, 4], [2, 2, 2])])
def test_occlusion_refuses_patches_of_other_axes(patch, stride, network, images):
    with pytest.raises(ValueError, match=r"whole numbers 1 <= stride <= patch for 2 axes.*got patch"):
        Occlusion(patch, stride)(network, images)


def test_occlusion_refuses_a_list_as_value():
    with pytest.raises(TypeError, match=r"expected value of Occlusion as .* or Tensor, got .* pass one tensor"):
        Occlusion(4, 2, value=[0.0, 1.0])


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(3, 1, 1)])
def test_occlusion_refuses_value_of_other_shape(value, network, images):
    with pytest.raises(
        ValueError, match=r"fits images \(2, 2, 8, 8\), got .* one per channel has the shape \(2, 1, 1\)"
    ):
        Occlusion(4, 2, value=value)(network, images)


def test_occlusion_value_keeps_precision_of_images(function):
    """The hidden pixel holds 0.1 in double precision, not 0.1 rounded to single."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    S = Occlusion(2, 2, value=0.1)(function(lambda x: x.flatten(1).sum(1, keepdim=True)), x)
    assert S[0, 0, 0] == 4 - 0.4


def test_poly_cam_refuses_layers_from_coarse_to_fine(images):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 3)).double()
    assert PolyCAM(layers=["0", "1"])(net, images).shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"fine to coarse.*'1': 16, '0': 64.*reorder"):
        PolyCAM(layers=["1", "0"])(net, images)


def test_poly_cam_refuses_empty_layers(network, images):
    with pytest.raises(ValueError, match="at least one name"):
        PolyCAM(layers=[])(network, images)


@pytest.mark.parametrize("target", ["topk:2", torch.tensor([[0, 1], [1, 2]])])
def test_poly_cam_stages_refuse_several_targets(target, network, images):
    with pytest.raises(ValueError, match="one target per image"):
        PolyCAM(layers=["0"]).stages(network, images, target)
    assert PolyCAM(layers=["0"])(network, images, target).shape == (2, 2, 8, 8)
