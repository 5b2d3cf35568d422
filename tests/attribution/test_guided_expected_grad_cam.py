from dataclasses import replace

import pytest
import torch
from support.tally import Tally
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, ExpectedGradients, GuidedExpectedGradCAM, normalize


@pytest.fixture
def cam():
    base = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return ExpectedGradCAM("0", baselines=base, n=6)


@pytest.mark.parametrize("difference", ["layer_diff", "tangent"])
def test_guided_expected_grad_cam_is_product_with_same_draws(difference, cam, network, images):
    cam = replace(cam, difference=difference)
    phi = ExpectedGradients(cam.baselines, n=6, reduce="none")(network, images, 1)
    H = normalize(cam(network, images, 1))[:, None] * phi
    assert_close(GuidedExpectedGradCAM(cam, reduce="none")(network, images, 1), H)
    assert_close(GuidedExpectedGradCAM(cam)(network, images, 1), H.abs().sum(1))


def test_guided_expected_grad_cam_is_zero_where_cam_is_zero(cam, network, images):
    zero = replace(cam, baselines=images[:1])
    assert not GuidedExpectedGradCAM(zero)(network, images[:1], 1).any()


def test_guided_expected_grad_cam_costs_one_backward_per_draw(cam, network, images):
    """The gradient at the layer costs no pass of its own."""
    passes = Tally()

    def count(grad):
        passes.append(len(grad))

    def watch(module, args, out):
        if out.requires_grad:
            out.register_hook(count)

    network.register_forward_hook(watch)
    GuidedExpectedGradCAM(cam)(network, images, torch.tensor([0, 1]))
    assert sum(passes) == 2 * 6


def test_guided_expected_grad_cam_refuses_cam_of_several_layers(cam, network, images):
    for wrong in ({"layer": ["0", "1.0"]}, {"upsample": False}, {"rule": "guided"}):
        with pytest.raises(ValueError, match="a cam of one layer"):
            GuidedExpectedGradCAM(replace(cam, **wrong))(network, images, 1)
