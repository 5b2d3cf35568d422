"""Conditions of an optimum, scikit-learn's optimum, and a problem in one dimension solved by hand."""

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.regularization.logistic_regression import fit_logistic_regression


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def problem(request):
    generator = torch.Generator().manual_seed(0)
    n = 60 * request.param
    y = torch.arange(n) % request.param
    z = torch.randn(n, 8, generator=generator).double()
    z[:, 0] += y
    z[:, 1] += (y == 1).double()
    z[:, 2] = z[:, 0] + 0.3 * z[:, 2]  # correlated
    return z, y, request.param


def test_gradients_of_the_optimum_balance_the_penalty(problem):
    """|dJ0/dw| is at most the strength, and equals it against the sign of w where w is not 0; dJ0/db is 0."""
    z, y, N = problem
    W, b = fit_logistic_regression(z, y, N, 0.05, tolerance=1e-9)
    W, b = W.requires_grad_(), b.requires_grad_()
    torch.nn.functional.cross_entropy(z @ W.T + b, y).backward()
    assert_close(b.grad, torch.zeros_like(b), rtol=0, atol=1e-8)
    assert (W.grad.abs() <= 0.05 + 1e-8).all()
    chosen = W != 0
    assert 0 < chosen.sum() < W.numel()
    assert_close(W.grad[chosen], -0.05 * W[chosen].sign(), rtol=0, atol=1e-8)


def test_the_optimum_is_that_of_scikit_learn(problem):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, y, N = problem
    W, b = fit_logistic_regression(z, y, N, 0.02, tolerance=1e-10)
    options = {"C": 1 / (len(z) * 0.02), "solver": "saga", "tol": 1e-10, "max_iter": 100_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its names of penalties change between versions
        theirs = linear_model.LogisticRegression(penalty="l1", **options).fit(z.numpy(), y.numpy())
    prob = torch.as_tensor(theirs.predict_proba(z.numpy()))
    assert_close((z @ W.T + b).softmax(1), prob, rtol=0, atol=1e-6)


def test_one_feature_by_hand():
    """z = -1 and 1 name the classes. With u = W[1] - W[0], log(1 + exp(-u)) + 0.1 |u| is least at exp(u) = 9."""
    z, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    W, b = fit_logistic_regression(z, y, 2, 0.1, tolerance=1e-12)
    assert (W[1] - W[0]).item() == pytest.approx(math.log(9), abs=1e-8)
    assert (b[1] - b[0]).item() == pytest.approx(0, abs=1e-8)


def test_without_a_bias_it_is_zero_and_a_start_ends_at_the_same(problem):
    z, y, N = problem
    W, b = fit_logistic_regression(z, y, N, 0.05, bias=False, tolerance=1e-10)
    assert not b.any()
    again, none = fit_logistic_regression(z, y, N, 0.05, bias=False, start=(W + 1, b), tolerance=1e-10)
    assert not none.any()
    assert_close((z @ again.T).softmax(1), (z @ W.T).softmax(1), rtol=0, atol=1e-6)  # of two rows the sum is free


def test_a_fit_that_does_not_end_warns(problem):
    z, y, N = problem
    with pytest.warns(UserWarning, match="expected a logistic regression of strength 0.001 to end within 3 rounds"):
        fit_logistic_regression(z, y, N, 0.001, max_rounds=3)
