from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, GuidedBackprop, GuidedGradCAM, normalize

close = partial(assert_close, rtol=0, atol=1e-9)


@pytest.mark.parametrize("corners", [False, True])
def test_guided_grad_cam_is_grad_cam_times_guided_backprop(corners, network, images):
    L = normalize(GradCAM(layer="0", align_corners=corners)(network, images, 1))
    g = GuidedBackprop(reduce="none")(network, images, 1)
    phi = GuidedGradCAM(layer="0", align_corners=corners, reduce="none")(network, images, 1)
    close(phi, L[:, None] * g)
    close(GuidedGradCAM(layer="0", align_corners=corners)(network, images, 1), phi.abs().amax(1))


def test_guided_grad_cam_keeps_plain_gradient_for_its_cam(images):
    """y = -mean(relu(A)): guided, no gradient would reach A and the map would be zero."""
    stem = nn.Conv2d(2, 1, 1).double()
    for p in stem.parameters():
        nn.init.constant_(p, 0.5)  # so that something is positive
    model = nn.Sequential(nn.ReLU(), stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    L = GradCAM(layer="1", relu=False)(model, images, 1)
    assert L.any()
    phi = GuidedGradCAM(layer="1", reduce="none")(model, images, 1)
    close(phi, normalize(L.relu())[:, None] * GuidedBackprop(reduce="none")(model, images, 1))


def test_guided_grad_cam_of_zero_cam_is_zero(function, images):
    model = function(lambda x, act: -act(x).flatten(1).sum(1), act=nn.ReLU())
    assert not GuidedGradCAM(layer="act")(model, images).any()


def test_guided_grad_cam_equals_guided_backprop_where_cam_is_one(function, images):
    """A = 1 left and 0 right: so is the normalized map."""
    half = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    half[..., :4] = 1
    model = function(
        lambda x, layer: layer(0 * x[:, :1].relu() + half).mean((2, 3)) + x.relu().sum((1, 2, 3))[:, None],
        layer=nn.Identity(),
    )
    phi = GuidedGradCAM(layer="layer", reduce="none")(model, images)
    close(phi, half * (images > 0))


def test_guided_grad_cam_of_class_without_layer_is_zero(function, images):
    model = function(
        lambda x, layer: torch.stack([x.relu().flatten(1).sum(1), layer(x).flatten(1).sum(1)], 1),
        layer=nn.Conv2d(2, 1, 1).double(),
    )
    assert not GuidedGradCAM(layer="layer")(model, images, 0).any()


def test_guided_grad_cam_of_dropped_layer_is_zero(function, images):
    model = function(lambda x, layer: (layer(x), x.relu().flatten(1))[1], layer=nn.Conv2d(2, 1, 1).double())
    assert not GuidedGradCAM(layer="layer")(model, images, 0).any()


def test_guided_grad_cam_names_layer_that_does_not_run(function, images):
    model = function(lambda x, unused: x.relu().flatten(1), unused=nn.Identity())
    with pytest.raises(RuntimeError, match="layer 'unused' to run"):
        GuidedGradCAM(layer="unused")(model, images, 0)
