from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import HiResCAM, LayerCAM, normalize

close = partial(assert_close, rtol=0, atol=1e-9)


def test_layer_cam_keeps_positive_gradients_cell_by_cell(case, activations):
    network, x = case
    A, G = activations(network, x, [1, 2])
    expected = sum(G[:, k].clamp(min=0) * A[:, k] for k in range(4))
    close(LayerCAM(layer="0", upsample=False)(network, x, [1, 2]), expected)


def test_layer_cam_equals_hires_cam_of_positive_gradients(gap_linear, W, features):
    model = gap_linear(W.abs())
    close(LayerCAM(layer="features")(model, features, 1), HiResCAM(layer="features")(model, features, 1))


def test_layer_cam_of_negative_gradients_is_zero(gap_linear, W, features):
    assert not LayerCAM(layer="features")(gap_linear(-W.abs()), features, 1).any()


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_layer_cam_fuses_normalized_maps(fusion, network, images):
    maps = torch.stack([normalize(LayerCAM(layer=name)(network, images, 0)) for name in ("0.0", "0.1", "1.0")])
    expected = maps.mean(0) if fusion == "mean" else maps.amax(0)
    close(LayerCAM(layer=["0.0", "0.1", "1.0"], fusion=fusion)(network, images, 0), expected)


def test_layer_cam_default_fusion_is_mean(network, images):
    two = ["0", "1.0"]
    close(LayerCAM(layer=two)(network, images, 0), LayerCAM(layer=two, fusion="mean")(network, images, 0))


def test_layer_cam_rectifies_after_the_sum(gap_linear):
    """A = (1, -3) in two channels under weights 1: 1 - 3 = -2, so the map is zero."""
    A = torch.tensor([1.0, -3]).view(1, 2, 1, 1).expand(1, 2, 2, 2).double()
    model = gap_linear([[1.0, 1]])
    assert not LayerCAM(layer="features")(model, A, 1).any()
    close(LayerCAM(layer="features", relu=False)(model, A, 1), torch.full((1, 2, 2), -0.5, dtype=torch.float64))
