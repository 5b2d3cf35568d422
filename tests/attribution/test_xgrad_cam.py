from functools import partial

import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, XGradCAM

close = partial(assert_close, rtol=0, atol=1e-9)


def test_xgrad_cam_equals_printed_formula_and_conserves(case, activations):
    """Sum over k of w[k] sum(A[k]) = sum of A dA, which is also the sum of the map."""
    network, x = case
    A, G = activations(network, x, [1, 2])
    expected = torch.zeros(2, *A.shape[2:], dtype=A.dtype)
    for i in range(2):
        for k in range(4):
            expected[i] += (A[i, k] * G[i, k]).sum() / A[i, k].sum() * A[i, k]
    S = XGradCAM(layer="0", relu=False, upsample=False)(network, x, [1, 2])
    close(S, expected)
    close(S.flatten(1).sum(1), (A * G).flatten(1).sum(1))


def test_xgrad_cam_equals_grad_cam_for_linear_head(gap_linear, W, b, features, target):
    model = gap_linear(W, b)
    close(XGradCAM(layer="features")(model, features, target), GradCAM(layer="features")(model, features, target))


def test_xgrad_cam_gives_dead_channel_no_weight(gap_linear, W, features, target):
    features[:, 2] = 0
    S = XGradCAM(layer="features", relu=False)(gap_linear(W), features, target)
    W[:, 2] = 0
    close(S, torch.einsum("bk,bkij->bij", W[target], features) / 6)


def test_xgrad_cam_weight_of_cancelling_channel_is_bounded(function):
    """A = (1, -1 + 1e-12) under gradients (1, 0): the sum 1e-12 counts as at least 1e-8, so w is at most 1e8."""
    A = torch.tensor([1, -1 + 1e-12], dtype=torch.float64).view(1, 1, 1, 2)
    model = function(lambda x, features: features(x)[..., 0].flatten(1), features=torch.nn.Identity())
    assert XGradCAM(layer="features", relu=False)(model, A).abs().max() <= 1.0001e8
