from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import CAM

close = partial(assert_close, rtol=0, atol=1e-9)


def test_cam_averages_to_the_logit_without_its_bias(gap_linear, W, b, features, target):
    """y[c] = b[c] + sum over k of W[c, k] mean(A[k]), so mean(S) + b[c] = y[c]."""
    model = gap_linear(W, b)
    S = CAM(layer="features")(model, features, target)
    close(S.mean((1, 2)) + b[target], model(features)[[0, 1], target].detach())


def test_cam_weighs_channels_by_the_row_of_the_class(gap_linear, W, b, features, target):
    S = CAM(layer="features")(gap_linear(W, b), features, target)
    for i, c in enumerate(target):
        close(S[i], sum(W[c, k] * features[i, k] for k in range(4)))


def test_cam_is_signed_and_relu_keeps_its_positive_part(gap_linear, W, features, target):
    model = gap_linear(W)
    S = CAM(layer="features")(model, features, target)
    assert S.min() < 0
    close(CAM(layer="features", relu=True)(model, features, target), S.clamp(min=0))


def test_cam_of_zero_weights_is_zero(gap_linear, features):
    assert not CAM(layer="features")(gap_linear(torch.zeros(3, 4)), features, 1).any()


@pytest.mark.parametrize("pool_first", [True, False])
def test_cam_reads_a_convolution_of_one_cell_as_linear_layer(pool_first, W, b, features, target):
    conv, pool = nn.Conv2d(4, 3, 1).double(), nn.AdaptiveAvgPool2d(1)
    conv.weight.data, conv.bias.data = W[:, :, None, None].clone(), b.clone()
    model = nn.Sequential(nn.Identity(), *([pool, conv] if pool_first else [conv, pool]), nn.Flatten())
    close(CAM(layer="0")(model, features, target), torch.einsum("bk,bkij->bij", W[target], features))


@pytest.mark.parametrize("axes", [1, 3])
def test_cam_of_signals_and_volumes(axes, gap_linear, W):
    A = torch.rand(2, 4, *[5, 4, 3][:axes], dtype=torch.float64)
    close(CAM(layer="features")(gap_linear(W), A, 2), torch.einsum("k,bk...->b...", W[2], A))


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(12, 3)),
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid()),
    ],
    ids=["two linear layers", "coarse pooling", "maximum pooling", "activation behind"],
)
def test_cam_refuses_other_heads(head, features):
    with pytest.raises(ValueError, match=r"global average pooling and one linear layer.*GradCAM"):
        CAM(layer="0")(nn.Sequential(nn.Identity(), head).double(), features, 0)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1)),
        nn.Sequential(nn.Conv2d(2, 12, 1, bias=False), nn.Conv2d(12, 4, 1)),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)),
    ],
)
def test_cam_finds_the_head_among_layers_with_as_many_weights(other, W, images):
    """6 x 2 x 1 x 1, as well as 3 x 4 x 1 x 1, are the 12 weights of the head."""
    head = nn.Linear(4, 3)
    model = nn.Sequential(other, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    head.weight.data = W.clone()
    S = CAM(layer="0", upsample=False)(model, images, 2)
    close(S, torch.einsum("k,bkij->bij", W[2], other(images)).detach())


def test_cam_refuses_a_callable_target(gap_linear, W, features):
    with pytest.raises(TypeError, match="class indices"):
        CAM(layer="features")(gap_linear(W), features, lambda y: y[:, 0])


def test_cam_of_one_logit_is_negative_for_class_zero(gap_linear, W, features):
    model, cam = gap_linear(W[:1], [0.4]), CAM(layer="features")
    close(cam(model, features, 1), torch.einsum("k,bkij->bij", W[0], features))
    close(cam(model, features, [0, 1])[0], -cam(model, features, 1)[0])


def test_cam_normalized_after_upsampling_spans_zero_to_one(gap_linear, W, features):
    S = CAM(layer="features", normalize="after")(gap_linear(W), features, 0)
    close(S.amin((1, 2)), torch.zeros(2, dtype=torch.float64))
    close(S.amax((1, 2)), torch.ones(2, dtype=torch.float64))
