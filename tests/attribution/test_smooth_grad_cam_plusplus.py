from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAMPlusPlus, SmoothGradCAMPlusPlus

close = partial(assert_close, rtol=0, atol=1e-9)


def channel_weight(A, g, numerator, relu_of):
    """(2) to (4) of one channel: A (h, w), g (n, h, w)."""
    D1, D2, D3 = (sum(row**power for row in g) / len(g) for power in (1, 2, 3))
    second = sum(a * d for a, d in zip(A.flatten(), D3.flatten()))
    alpha = (D1 if numerator == "D1" else D2) / (2 * D2 + second)
    return (alpha * (D1 if relu_of == "mean" else g[-1]).relu()).sum()


@pytest.mark.parametrize("numerator", ["D1", "D2"])
@pytest.mark.parametrize("relu_of", ["mean", "last"])
@pytest.mark.parametrize("chunk_size", [3, 100])
def test_smooth_grad_cam_plusplus_is_the_printed_formula(numerator, relu_of, chunk_size, case, activations):
    network, x = case
    generator = torch.Generator().manual_seed(5)
    noise = 0.7 * torch.randn(4, *x.shape[1:], generator=generator).double()
    A, _ = activations(network, x, [1, 2])
    g = torch.stack([activations(network, x + noise[s], [1, 2])[1] for s in range(4)], 2)
    w = [[channel_weight(A[i, k], g[i, k], numerator, relu_of) for k in range(4)] for i in range(2)]
    expected = torch.einsum("bk,bk...->b...", torch.tensor(w, dtype=torch.float64), A)
    options = {"numerator": numerator, "relu_of": relu_of, "n": 4, "sigma": 0.7, "seed": 5, "chunk_size": chunk_size}
    close(SmoothGradCAMPlusPlus(layer="0", relu=False, upsample=False, **options)(network, x, [1, 2]), expected)


def test_smooth_grad_cam_plusplus_without_noise(network, images):
    smooth = SmoothGradCAMPlusPlus(layer="0", sigma=0.0)(network, images, 1)
    close(smooth, GradCAMPlusPlus(layer="0", denominator="sum_act_grad")(network, images, 1))


@pytest.mark.parametrize("sigma", [0.3, 10.0])
def test_smooth_grad_cam_plusplus_of_constant_gradients(sigma, gap_linear, W, b, features, target):
    model = gap_linear(W, b)
    smooth = SmoothGradCAMPlusPlus(layer="features", sigma=sigma)(model, features, target)
    close(smooth, GradCAMPlusPlus(layer="features", denominator="sum_act_grad")(model, features, target))


def test_smooth_grad_cam_plusplus_defaults():
    method = SmoothGradCAMPlusPlus()
    assert (method.n, method.sigma, method.numerator, method.relu_of) == (4, 0.3, "D2", "mean")


def test_smooth_grad_cam_plusplus_follows_seed(network, images):
    one, again, other = (SmoothGradCAMPlusPlus(layer="0", seed=s)(network, images, 1) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("wrong", [{"numerator": "D3"}, {"relu_of": "first"}, {"n": 0}])
def test_smooth_grad_cam_plusplus_refuses_wrong_options(wrong, network, images):
    with pytest.raises(ValueError, match=f"got '?{next(iter(wrong.values()))}"):
        SmoothGradCAMPlusPlus(layer="0", **wrong)(network, images, 0)
