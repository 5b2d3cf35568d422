from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAMPlusPlus

close = partial(assert_close, rtol=0, atol=1e-9)


def channel_weight(A, g, denominator, alpha_norm):
    """(1) and (2) of one channel, place by place."""
    Z, cubes = A.numel(), (A * g**3).sum()
    alpha = torch.zeros_like(A)
    for at in torch.cartesian_prod(*[torch.arange(s) for s in A.shape]).view(Z, -1).tolist():
        at = tuple(at)
        second = {"sum_act": A.sum() * g[at] ** 3, "sum_act_grad": cubes, "mean_act_grad": cubes / Z}[denominator]
        alpha[at] = g[at] ** 2 / (2 * g[at] ** 2 + second) if g[at] != 0 else 0
    if alpha_norm and (total := alpha[g > 0].sum()) != 0:
        alpha = alpha / total
    return (alpha * g.relu()).sum()


@pytest.mark.parametrize("alpha_norm", [False, True])
@pytest.mark.parametrize("denominator", ["sum_act", "sum_act_grad", "mean_act_grad"])
def test_grad_cam_plusplus_is_the_printed_formula(denominator, alpha_norm, case, activations):
    network, x = case
    A, G = activations(network, x, [1, 2])
    w = [[channel_weight(A[i, k], G[i, k], denominator, alpha_norm) for k in range(4)] for i in range(2)]
    expected = torch.einsum("bk,bk...->b...", torch.tensor(w, dtype=torch.float64), A)
    cam = GradCAMPlusPlus(layer="0", relu=False, upsample=False, denominator=denominator, alpha_norm=alpha_norm)
    close(cam(network, x, [1, 2]), expected)


@pytest.mark.parametrize("denominator", ["sum_act", "sum_act_grad"])
def test_grad_cam_plusplus_closed_form_for_linear_head(denominator, gap_linear, W, b, features, target):
    """g = W[c, k] / Z everywhere, so w[k] = relu(W[c, k]) / (2 + W[c, k] mean(A[k]))."""
    u = W[target] * features.mean((2, 3))
    w = W[target].relu() / (2 + u)
    S = GradCAMPlusPlus(layer="features", denominator=denominator)(gap_linear(W, b), features, target)
    close(S, torch.einsum("bk,bkij->bij", w, features))


def test_grad_cam_plusplus_mean_act_grad_by_hand(gap_linear, W, features, target):
    """w[k] = relu(W[c, k]) / (2 + u / Z), up to the factor 1 / Z of a mean in place of the outer sum."""
    u = W[target] * features.mean((2, 3))
    S = GradCAMPlusPlus(layer="features", denominator="mean_act_grad")(gap_linear(W), features, target)
    close(S, torch.einsum("bk,bkij->bij", W[target].relu() / (2 + u / 6), features))


def test_grad_cam_plusplus_alpha_norm_by_hand(gap_linear, W, features, target):
    S = GradCAMPlusPlus(layer="features", alpha_norm=True)(gap_linear(W), features, target)
    close(S, torch.einsum("bk,bkij->bij", W[target].relu() / 6, features))


def test_grad_cam_plusplus_of_negative_gradients_is_zero(gap_linear, W, features):
    assert not GradCAMPlusPlus(layer="features")(gap_linear(-W.abs()), features, 0).any()


def test_grad_cam_plusplus_of_class_without_weights_is_zero(gap_linear, W, features):
    assert not GradCAMPlusPlus(layer="features")(gap_linear(0 * W), features, 0).any()


def test_grad_cam_plusplus_ignores_size_of_gradients(gap_linear, W, features):
    """Features of size 1/t under gradients of size t have the same product."""
    one = GradCAMPlusPlus(layer="features")(gap_linear(W), features, 0)
    tiny = GradCAMPlusPlus(layer="features")(gap_linear(W * 1e-9), features * 1e9, 0)
    close(tiny, one)


def test_grad_cam_plusplus_of_zero_denominator_is_finite(gap_linear, features):
    """Signed features with 2 + W mean(A) = 0."""
    A = torch.full((1, 1, 2, 2), -2.0, dtype=torch.float64)
    assert GradCAMPlusPlus(layer="features")(gap_linear([[1.0]]), A, 1).isfinite().all()


def test_grad_cam_plusplus_refuses_unknown_denominator(gap_linear, W, features):
    with pytest.raises(ValueError, match=r"'sum_act', 'sum_act_grad', 'mean_act_grad'.*got 'sum'"):
        GradCAMPlusPlus(layer="features", denominator="sum")(gap_linear(W), features)
