from functools import partial

import torch
from torch.testing import assert_close

from interpretable_training.attribution import CAM, HiResCAM

close = partial(assert_close, rtol=0, atol=1e-9)


def test_hires_cam_is_gradient_times_activation(case, activations):
    network, x = case
    A, G = activations(network, x, [1, 2])
    expected = sum(G[:, k] * A[:, k] for k in range(4))
    assert expected.min() < 0
    close(HiResCAM(layer="0", upsample=False, relu=False)(network, x, [1, 2]), expected)
    close(HiResCAM(layer="0", upsample=False)(network, x, [1, 2]), expected.relu())


def test_hires_cam_equals_cam_over_cells_for_linear_head(gap_linear, W, b, features, target):
    model = gap_linear(W, b)
    expected = CAM(layer="features", relu=True)(model, features, target) / 6
    close(HiResCAM(layer="features")(model, features, target), expected)


def test_hires_cam_sums_to_logit_without_bias_for_linear_head(function, features):
    head = torch.nn.Linear(24, 3).double()
    model = function(lambda x, features: head(features(x).flatten(1)), features=torch.nn.Identity())
    S = HiResCAM(layer="features", relu=False)(model, features, [2, 0])
    close(S.sum((1, 2)) + head.bias[[2, 0]].detach(), model(features)[[0, 1], [2, 0]].detach())
