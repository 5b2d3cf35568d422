"""Test what baselines may be, when cached features are refused, and how many passes they cost."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attributions import BASELINES, generators, toy, toy_images
from support.expected_methods import every_expected_method, expected_methods
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    Baselines,
    ExpectedGradCAM,
    ExpectedGradients,
    cache_baselines,
    sample_baselines,
)
from interpretable_training.attribution.core.prepared_model import prepare_model


@every_expected_method
@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_expected_methods_explain_dense_output_by_callable(name, difference):
    """The output may have any shape if the target makes numbers of it: the same as a model that returns these."""
    body = toy().stem
    maps = nn.Sequential(body, nn.Conv2d(6, 4, 1)).eval()
    pooled = nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    method = expected_methods(BASELINES, layer="0", difference=difference, relu=False)[name]
    if name in ("mask", "zoom"):
        method = replace(method, layers=[])
    S = method(maps, toy_images(1), lambda y: y[:, 2].mean((1, 2)))
    assert S.any()
    assert_close(S, method(pooled, toy_images(1), 2))


def test_cached_baselines_of_model_with_dense_output():
    maps = nn.Sequential(toy().stem, nn.Conv2d(6, 4, 1)).eval()
    cached = cache_baselines(maps, BASELINES, "0", output=lambda y: y.mean((2, 3)))
    cam = ExpectedGradCAM("0", baselines=BASELINES, n=3)

    def score(y):
        return y[:, 1].mean((1, 2))

    assert torch.equal(replace(cam, baselines=cached)(maps, toy_images(1), score), cam(maps, toy_images(1), score))


@pytest.mark.parametrize("wrong", [[1, 2], list(BASELINES), BASELINES.numpy(), None, "zeros"])
def test_baselines_refuse_other_types_than_tensor(wrong):
    advice = "pass one tensor" if isinstance(wrong, (list, np.ndarray)) else ""
    for method in (ExpectedGradCAM, ExpectedGradients):
        with pytest.raises(
            TypeError, match=f"(?s)expected baselines of {method.__name__} as Tensor or .*, got .*{advice}"
        ):
            method(baselines=wrong, n=2)


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.bool])
def test_baselines_refuse_integer_pixels(dtype, difference):
    pixels = (BASELINES.abs() * 50).to(dtype)
    for method in (ExpectedGradCAM(baselines=pixels, n=2, difference=difference), ExpectedGradients(pixels, n=2)):
        with pytest.raises(TypeError, match=f"normalized like the images, got {dtype}"):
            method(toy(), toy_images(1), 1)


@every_expected_method
def test_baselines_with_other_dtype_graph_or_inference_mode(name):
    net, images = toy(), toy_images(1)
    expected = expected_methods(BASELINES)[name](net, images, 1)
    with torch.inference_mode():
        inside = BASELINES * 1
    for given in (BASELINES.double(), BASELINES.clone().requires_grad_(), inside):
        assert_close(expected_methods(given)[name](net, images, 1), expected)


def test_expected_gradients_accept_baselines_object():
    cached = cache_baselines(toy(), BASELINES)
    expected = ExpectedGradients(BASELINES, n=3)(toy(), toy_images(), 1)
    assert torch.equal(ExpectedGradients(cached, n=3)(toy(), toy_images(), 1), expected)
    with pytest.raises(ValueError, match=r"expected baselines \(N, \*\(3, 16, 24\)\) like the images"):
        ExpectedGradients(Baselines(BASELINES[..., 1:]))(toy(), toy_images(), 1)


def test_cached_baselines_stale_features_refused_if_first_is_black():
    """A black image has no features in a network without biases, whatever its weights are."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 8 * 12, 4))
    base = BASELINES.clone()
    base[0] = 0
    cam = ExpectedGradCAM("1", baselines=cache_baselines(net, base, "1"), n=8, draws="sequential")
    assert cam(net, toy_images(1), 1).any()
    nn.init.normal_(net[0].weight)
    with pytest.raises(ValueError, match="trained since"):
        cam(net, toy_images(1), 1)


def test_cached_baselines_detect_one_small_training_step():
    net = toy()
    cam = ExpectedGradCAM(baselines=cache_baselines(net, BASELINES), n=3)
    before = cam(net, toy_images(1), 1)
    for p in net.parameters():
        p.data.mul_(1.002)
    with pytest.raises(ValueError, match="make them again"):
        cam(net, toy_images(1), 1)
    for p in net.parameters():
        p.data.div_(1.002)
    assert_close(cam(net, toy_images(1), 1), before, rtol=1e-4, atol=1e-5)


def test_cached_baselines_serve_half_precision_and_autocast():
    net, images = toy(), toy_images(1)
    cam = ExpectedGradCAM(baselines=cache_baselines(net, BASELINES), n=3)
    expected = cam(net, images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cam(net, images, 1)
    for S in (mixed, cam(copy.deepcopy(net).bfloat16(), images, 1), cam(copy.deepcopy(net).double(), images, 1)):
        assert_close(S.float(), expected, rtol=0.1, atol=0.05 * float(expected.max()))
    double = cache_baselines(copy.deepcopy(net).double(), BASELINES.double())
    assert_close(replace(cam, baselines=double)(net, images, 1), expected)


def test_hyper_expected_grad_cam_uses_cached_features_of_layers():
    net, images = toy(), toy_images(1)
    hyper = expected_methods(BASELINES)["mask"]
    stages = hyper.stages(net, images, 1)
    assert len(stages.layers) == 2
    cached = replace(hyper, cam=replace(hyper.cam, baselines=cache_baselines(net, BASELINES, stages.layers)))
    assert_close(cached(net, images, 1), stages.saliency, rtol=1e-3, atol=1e-5)
    one = replace(hyper, cam=replace(hyper.cam, baselines=cache_baselines(net, BASELINES)))
    with pytest.raises(ValueError, match=r"got those of \['boom'\]; pass all layers to cache_baselines"):
        one(net, images, 1)


def test_baselines_run_once_for_any_number_of_draws():
    """600 draws of 3 baselines: features of 3, not of 600, though every index is used 200 times."""
    net = toy()
    with prepare_model(net) as prepared:
        index = torch.tensor([2, 0, 1] * 200)
        target = torch.tensor([0])
        A, where = Baselines(BASELINES).of_layer(prepared, "block", index, target)
        cached = cache_baselines(net, BASELINES, "block")
        again, same = cached.of_layer(prepared, "block", index, target)
        assert len(A) == len(again) == 3
        assert torch.equal(where, index)
        assert torch.equal(same, index)
        assert_close(A[where], cached.features["block"][index])
        assert_close(again[same], cached.features["block"][index])
        few, where = cached.of_layer(prepared, "block", torch.tensor([3, 1, 3]), target)
        assert len(few) == 2
        assert torch.equal(few[where], cached.features["block"][[3, 1, 3]])


@every_expected_method
def test_expected_methods_keep_to_chunk_size(name):
    """That of images, of blocks and of baselines neither."""
    net, largest = toy(), Tally()
    net.register_forward_pre_hook(lambda module, args: largest.append(len(args[0])))
    method = expected_methods(BASELINES, chunk_size=2)[name]
    S = method(net, toy_images(5), torch.tensor([0, 1, 2, 3, 0]))
    assert max(largest) == 2
    assert_close(S, expected_methods(BASELINES)[name](toy(), toy_images(5), torch.tensor([0, 1, 2, 3, 0])))


def test_sample_baselines_restores_all_generators():
    class Noisy:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((1, 2, 2), i + random.random() + np.random.rand()) + torch.rand(())

    before = generators()
    first = sample_baselines(Noisy(), 3)
    assert generators() == before
    assert torch.equal(first, sample_baselines(Noisy(), 3))


def test_sample_baselines_refuses_several_sizes():
    with pytest.raises(ValueError, match=r"one size, got \[\(1, 2, 2\), \(1, 3, 2\)\]"):
        sample_baselines([torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)], 2)
