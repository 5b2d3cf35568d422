"""Options of the masking methods that cannot be: the message says what is expected."""

import pytest
import torch
from torch import nn

from interpretable_training.attribution import Occlusion, PolyCAM


@pytest.mark.parametrize(("patch", "stride"), [(2.5, 1), (4, 1.5), ((4, 2.5), 1), ((4,), 2), ([4, 4], [2, 2, 2])])
def test_patches_are_whole_pixels_on_each_axis(patch, stride, network, images):
    with pytest.raises(ValueError, match=r"whole numbers 1 <= stride <= patch for 2 axes.*got patch"):
        Occlusion(patch, stride)(network, images)


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(3, 1, 1), [0.0, 1.0]])
def test_a_value_must_fit_the_images(value, network, images):
    with pytest.raises(
        ValueError, match=r"fits images \(2, 2, 8, 8\), got .* one per channel has the shape \(2, 1, 1\)"
    ):
        Occlusion(4, 2, value=value)(network, images)


def test_a_value_keeps_the_precision_of_the_images(function):
    """The hidden pixel holds 0.1 in double precision, not 0.1 rounded to single."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    S = Occlusion(2, 2, value=0.1)(function(lambda x: x.flatten(1).sum(1, keepdim=True)), x)
    assert S[0, 0, 0] == 4 - 0.4


def test_layers_from_coarse_to_fine_are_refused(images):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 3)).double()
    assert PolyCAM(layers=["0", "1"])(net, images).shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"fine to coarse.*'1': 16, '0': 64.*reorder"):
        PolyCAM(layers=["1", "0"])(net, images)


def test_no_layer_is_refused(network, images):
    with pytest.raises(ValueError, match="at least one name"):
        PolyCAM(layers=[])(network, images)


@pytest.mark.parametrize("target", ["topk:2", torch.tensor([[0, 1], [1, 2]])])
def test_stages_are_those_of_one_target(target, network, images):
    with pytest.raises(ValueError, match="one target per image"):
        PolyCAM(layers=["0"]).stages(network, images, target)
    assert PolyCAM(layers=["0"])(network, images, target).shape == (2, 2, 8, 8)
