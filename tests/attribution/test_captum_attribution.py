from functools import partial

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from interpretable_training.attribution import CaptumAttribution, GradCAM

close = partial(assert_close, rtol=0, atol=1e-9)
TARGET = torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("algorithm", "init_args", "call_args"),
    [
        ("IntegratedGradients", {}, {"n_steps": 7}),
        ("IntegratedGradients", {"multiply_by_inputs": False}, {"n_steps": 5, "method": "riemann_left"}),
        ("Saliency", {}, {"abs": False}),
        ("InputXGradient", {}, {}),
        ("Occlusion", {}, {"sliding_window_shapes": (2, 4, 4), "strides": (2, 4, 4)}),
        ("GuidedBackprop", {}, {}),
        ("Deconvolution", {}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_captum_attribution_equals_direct_call_of_captum(algorithm, init_args, call_args, network, images):
    x = images.clone().requires_grad_()
    phi = getattr(captum.attr, algorithm)(network, **init_args).attribute(x, target=TARGET, **call_args).detach()
    assert phi.any()
    method = partial(CaptumAttribution, algorithm, init_args=init_args, call_args=call_args)
    close(method(reduce="none")(network, images, TARGET), phi)
    close(method(reduce="max_abs")(network, images, TARGET), phi.abs().amax(1))
    close(method()(network, images, TARGET), phi.sum(1).abs())


@pytest.mark.parametrize("algorithm", ["LayerGradCam", "LayerActivation", "LayerGradientXActivation"])
def test_captum_attribution_sums_and_resizes_layer_volumes(algorithm, network, images):
    args = {} if algorithm == "LayerActivation" else {"target": TARGET}
    volume = getattr(captum.attr, algorithm)(network, network[0]).attribute(images, **args).detach()
    expected = F.interpolate(volume.sum(1, keepdim=True), (8, 8), mode="bilinear")[:, 0]
    close(CaptumAttribution(algorithm, layer="0", reduce="signed_sum")(network, images, TARGET), expected)


def test_captum_attribution_layer_grad_cam_equals_grad_cam(network, images):
    options = {"layer": "0", "reduce": "signed_sum", "call_args": {"relu_attributions": True}}
    close(CaptumAttribution("LayerGradCam", **options)(network, images, 1), GradCAM(layer="0")(network, images, 1))


def test_captum_attribution_of_one_logit_negates_class_zero(linear, images):
    w = torch.randn(1, 128, dtype=torch.float64)
    method = CaptumAttribution("Saliency", reduce="none", call_args={"abs": False})
    for target, sign in ((None, [1, 1]), ([0, 1], [-1, 1])):
        S = method(linear(w), images, target).flatten(1)
        close(S, torch.tensor(sign, dtype=torch.float64)[:, None] * w)


def test_captum_attribution_leaves_no_hooks(network, images):
    for options in ({"algorithm": "GuidedBackprop"}, {"algorithm": "LayerGradCam", "layer": "0"}):
        CaptumAttribution(**options)(network, images, 0)
    for module in network.modules():
        assert not (module._forward_hooks)
        assert not (module._forward_pre_hooks)
        assert not (module._backward_hooks)


def test_captum_attribution_refuses_unknown_algorithm(network, images):
    with pytest.raises(ValueError, match=r"got 'IntegratedGradient'.*'IntegratedGradients'"):
        CaptumAttribution("IntegratedGradient")(network, images)


def test_captum_attribution_refuses_callable_target(network, images):
    with pytest.raises(TypeError, match="class indices"):
        CaptumAttribution()(network, images, lambda y: y[:, 0])
