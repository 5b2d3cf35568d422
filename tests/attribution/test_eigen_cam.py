from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import EigenCAM

close = partial(assert_close, rtol=0, atol=1e-9)


@pytest.fixture
def model(gap_linear):
    """Any model: the map is of the features alone, which here are the image."""
    return lambda A: gap_linear(torch.ones(2, A.shape[1]))


def component(A, center):
    """X v of one image by numpy's SVD, of either sign."""
    X = A.flatten(1).T.numpy()
    X = X - X.mean(0) if center else X
    return torch.from_numpy(X @ np.linalg.svd(X)[2][0]).view(A.shape[1:])


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(4, 2, 3), (8, 2, 2), (3, 7), (3, 2, 3, 4)])
def test_eigen_cam_is_the_first_principal_component(center, shape, model):
    A = torch.rand(2, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2
    S = EigenCAM(layer="features", center=center, relu=False)(model(A), A)
    for results, features in zip(S, A):
        v = component(features, center)
        close(results, -v if v.max() < -v.min() else v)


def test_eigen_cam_of_proportional_channels_is_centered_map(model, features):
    """A[k] = a[k] M, so X v = |a| (M - mean M) up to its sign."""
    M, a = features[0, 0], torch.tensor([0.0, 2, 1, 2], dtype=torch.float64)
    S = EigenCAM(layer="features", relu=False)(model(features), a[:, None, None] * M[None, None])[0]
    expected = 3 * (M - M.mean())
    close(S, expected if expected.max() >= -expected.min() else -expected)


def test_eigen_cam_of_one_channel_is_its_centered_map(model, features):
    A = features[:, :1]
    S = EigenCAM(layer="features", relu=False, sign="mean")(model(A), A)
    close(S, A[:, 0] - A[:, 0].mean((1, 2), keepdim=True))


def test_eigen_cam_sign_max_or_mean_is_positive(model):
    """M = (0, 3, 3, 3) has its largest deviation -2.25 below the mean: "max" turns it around, "mean" does not."""
    A = torch.tensor([0.0, 3, 3, 3], dtype=torch.float64).view(1, 1, 2, 2)
    expected = A[:, 0] - 2.25
    close(EigenCAM(layer="features", relu=False)(model(A), A), -expected)
    close(EigenCAM(layer="features")(model(A), A), (-expected).relu())
    close(EigenCAM(layer="features", relu=False, sign="mean")(model(A), A), expected)
    close(EigenCAM(layer="features", relu=False, sign="none")(model(A), A).abs(), expected.abs())


def test_eigen_cam_of_constant_channels_is_zero(model):
    A = torch.tensor([1.0, 5]).view(1, 2, 1, 1).expand(1, 2, 3, 3).double()
    assert EigenCAM(layer="features")(model(A), A).abs().max() < 1e-9


def test_eigen_cam_ignores_the_class(network, images):
    one, two = (EigenCAM(layer="0")(network, images, c) for c in (0, 2))
    assert torch.equal(one, two)


def test_eigen_cam_refuses_unknown_sign(model, features):
    with pytest.raises(ValueError, match="got 'min'"):
        EigenCAM(layer="features", sign="min")(model(features), features)
