"""What baselines may be, when kept features are refused, and what they cost in memory."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attributions import BASELINES, generators, toy, toy_images
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    Baselines,
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    ExpectedGradients,
    GuidedExpectedGradCAM,
    HyperExpectedGradCAM,
    cache_baselines,
    sample_baselines,
)
from interpretable_training.attribution.core.prepared_model import prepare_model


def family(baselines, **options):
    cam = ExpectedGradCAM(baselines=baselines, n=3, **options)
    return {
        "cam": cam,
        "plusplus": ExpectedGradCAMPlusPlus(baselines=baselines, n=3, **options),
        "guided": GuidedExpectedGradCAM(cam),
        "mask": HyperExpectedGradCAM(cam, local_draws=1, most=1),
        "zoom": HyperExpectedGradCAM(cam, local_draws=1, most=1, neighborhood="zoom"),
    }


NAMES = list(family(BASELINES))
every = pytest.mark.parametrize("name", NAMES)


@every
@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
def test_a_model_of_maps_is_explained_by_a_callable(name, difference):
    """The output may have any shape if the target makes numbers of it: the same as a model that returns these."""
    body = toy().stem
    maps = nn.Sequential(body, nn.Conv2d(6, 4, 1)).eval()
    pooled = nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    method = family(BASELINES, layer="0", difference=difference, relu=False)[name]
    if name in ("mask", "zoom"):
        method = replace(method, layers=[])
    found = method(maps, toy_images(1), lambda y: y[:, 2].mean((1, 2)))
    assert found.any()
    assert_close(found, method(pooled, toy_images(1), 2))


def test_features_of_a_model_of_maps_can_be_kept():
    maps = nn.Sequential(toy().stem, nn.Conv2d(6, 4, 1)).eval()
    kept = cache_baselines(maps, BASELINES, "0", output=lambda y: y.mean((2, 3)))
    cam = ExpectedGradCAM("0", baselines=BASELINES, n=3)

    def score(y):
        return y[:, 1].mean((1, 2))

    assert torch.equal(replace(cam, baselines=kept)(maps, toy_images(1), score), cam(maps, toy_images(1), score))


@pytest.mark.parametrize("wrong", [[1, 2], list(BASELINES), BASELINES.numpy(), None, "zeros"])
def test_baselines_that_are_no_tensor_are_refused(wrong):
    for method in (ExpectedGradCAM(baselines=wrong, n=2), ExpectedGradients(wrong, n=2)):
        with pytest.raises(TypeError, match=f"as a tensor .* got {type(wrong).__name__}; stack them"):
            method(toy(), toy_images(1), 1)


@pytest.mark.parametrize("difference", ["layer_diff", "encode_diff", "tangent"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.bool])
def test_pixels_that_were_not_normalized_are_refused(dtype, difference):
    pixels = (BASELINES.abs() * 50).to(dtype)
    for method in (ExpectedGradCAM(baselines=pixels, n=2, difference=difference), ExpectedGradients(pixels, n=2)):
        with pytest.raises(TypeError, match=f"normalized like the images, got {dtype}"):
            method(toy(), toy_images(1), 1)


@every
def test_baselines_may_have_another_dtype_a_graph_or_come_from_inference_mode(name):
    net, images = toy(), toy_images(1)
    expected = family(BASELINES)[name](net, images, 1)
    with torch.inference_mode():
        inside = BASELINES * 1
    for given in (BASELINES.double(), BASELINES.clone().requires_grad_(), inside):
        assert_close(family(given)[name](net, images, 1), expected)


def test_expected_gradients_take_what_holds_baselines():
    kept = cache_baselines(toy(), BASELINES)
    expected = ExpectedGradients(BASELINES, n=3)(toy(), toy_images(), 1)
    assert torch.equal(ExpectedGradients(kept, n=3)(toy(), toy_images(), 1), expected)
    with pytest.raises(ValueError, match=r"expected baselines \(N, \*\(3, 16, 24\)\) like the images"):
        ExpectedGradients(Baselines(BASELINES[..., 1:]))(toy(), toy_images(), 1)


def test_older_features_are_refused_though_the_first_baseline_has_none():
    """A black image has no features in a network without biases, whatever its weights are."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 8 * 12, 4))
    base = BASELINES.clone()
    base[0] = 0
    cam = ExpectedGradCAM("1", baselines=cache_baselines(net, base, "1"), n=8, draws="sequential")
    assert cam(net, toy_images(1), 1).any()
    nn.init.normal_(net[0].weight)
    with pytest.raises(ValueError, match="trained since"):
        cam(net, toy_images(1), 1)


def test_one_small_step_of_training_is_seen():
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


def test_kept_features_serve_a_copy_in_half_precision_and_autocast():
    net, images = toy(), toy_images(1)
    cam = ExpectedGradCAM(baselines=cache_baselines(net, BASELINES), n=3)
    expected = cam(net, images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cam(net, images, 1)
    for found in (mixed, cam(copy.deepcopy(net).bfloat16(), images, 1), cam(copy.deepcopy(net).double(), images, 1)):
        assert_close(found.float(), expected, rtol=0.1, atol=0.05 * float(expected.max()))
    double = cache_baselines(copy.deepcopy(net).double(), BASELINES.double())
    assert_close(replace(cam, baselines=double)(net, images, 1), expected)


def test_hyper_takes_kept_features_of_all_its_layers():
    net, images = toy(), toy_images(1)
    hyper = family(BASELINES)["mask"]
    stages = hyper.stages(net, images, 1)
    assert len(stages.layers) == 2
    kept = replace(hyper, cam=replace(hyper.cam, baselines=cache_baselines(net, BASELINES, stages.layers)))
    assert_close(kept(net, images, 1), stages.saliency, rtol=1e-3, atol=1e-5)
    one = replace(hyper, cam=replace(hyper.cam, baselines=cache_baselines(net, BASELINES)))
    with pytest.raises(ValueError, match=r"got those of \['boom'\]; pass all layers to cache_baselines"):
        one(net, images, 1)


def test_each_baseline_is_run_and_held_once_however_many_draws_there_are():
    """600 draws of 3 baselines: features of 3, not of 600, though every index is used 200 times."""
    net = toy()
    with prepare_model(net) as prepared:
        index = torch.tensor([2, 0, 1] * 200)
        target = torch.tensor([0])
        A, where = Baselines(BASELINES).of_layer(prepared, "block", index, target)
        kept = cache_baselines(net, BASELINES, "block")
        again, same = kept.of_layer(prepared, "block", index, target)
        assert len(A) == len(again) == 3
        assert torch.equal(where, index)
        assert torch.equal(same, index)
        assert_close(A[where], kept.features["block"][index])
        assert_close(again[same], kept.features["block"][index])
        few, where = kept.of_layer(prepared, "block", torch.tensor([3, 1, 3]), target)
        assert len(few) == 2
        assert torch.equal(few[where], kept.features["block"][[3, 1, 3]])


@every
def test_no_pass_is_larger_than_the_chunk(name):
    """That of images, of blocks and of baselines neither."""
    net, largest = toy(), Tally()
    net.register_forward_pre_hook(lambda module, args: largest.append(len(args[0])))
    method = family(BASELINES, chunk_size=2)[name]
    found = method(net, toy_images(5), torch.tensor([0, 1, 2, 3, 0]))
    assert max(largest) == 2
    assert_close(found, family(BASELINES)[name](toy(), toy_images(5), torch.tensor([0, 1, 2, 3, 0])))


def test_a_data_set_that_augments_leaves_all_generators_alone():
    class Noisy:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((1, 2, 2), i + random.random() + np.random.rand()) + torch.rand(())

    before = generators()
    first = sample_baselines(Noisy(), 3)
    assert generators() == before
    assert torch.equal(first, sample_baselines(Noisy(), 3))


def test_images_of_several_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size, got \[\(1, 2, 2\), \(1, 3, 2\)\]"):
        sample_baselines([torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)], 2)
