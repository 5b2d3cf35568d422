from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import Gradient

close = partial(assert_close, rtol=0, atol=1e-9)
REDUCED = {  # of the three channels 1, -4, 2
    "max_abs": 4.0,
    "abs_sum": 7.0,
    "l2": 21**0.5,
    "signed_sum": -1.0,
    "abs_of_sum": 1.0,
}


def test_gradient_of_linear_model_is_its_weights(linear, images):
    w = torch.randn(3, 128, dtype=torch.float64)
    for x in (images, 0 * images, -5 * images):
        close(Gradient(reduce="none")(linear(w), x, [2, 0]), w[[2, 0]].view(2, 2, 8, 8))


def test_gradient_does_not_vanish_at_zero_input(linear):
    """y = -2 x1 + 9 x2 at (3, 0)."""
    x = torch.tensor([3.0, 0]).view(1, 1, 1, 2).double()
    close(Gradient()(linear([[-2.0, 9]]), x), torch.tensor([[[2.0, 9]]]).double())


@pytest.mark.parametrize("reduce", REDUCED)
def test_gradient_reduces_channels(reduce, linear):
    x = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    S = Gradient(reduce=reduce)(linear([[1.0, -4, 2]]), x)
    close(S, torch.full((1, 1, 1), REDUCED[reduce], dtype=torch.float64))


def test_gradient_default_is_largest_magnitude():
    assert Gradient().reduce == "max_abs"


@pytest.mark.parametrize("score", ["prob", "logprob", "loss", "sigmoid"])
def test_gradient_of_other_scores_by_hand(score, linear, images):
    """dp[c] = p[c] (w[c] - sum p w), dlog p[c] = w[c] - sum p w, loss = -log p[c], ds = s (1 - s) w[c]."""
    w = torch.randn(3, 128, dtype=torch.float64) / 8
    y = linear(w)(images)
    p, s = y.softmax(1), y.sigmoid()[:, 1, None]
    against = w[1] - p @ w
    expected = {"prob": p[:, 1, None] * against, "logprob": against, "loss": -against, "sigmoid": s * (1 - s) * w[1]}
    close(Gradient(score=score, reduce="none")(linear(w), images, 1).flatten(1), expected[score])


def test_gradient_of_one_logit_negates_class_zero(linear, images):
    """The probability of class 1 is sigmoid(y), that of class 0 is 1 - sigmoid(y)."""
    w = torch.randn(1, 128, dtype=torch.float64) / 8
    s = linear(w)(images).sigmoid()
    for score, slope in (("logit", torch.ones_like(s)), ("prob", s * (1 - s)), ("logprob", 1 - s), ("loss", s - 1)):
        close(Gradient(score=score, reduce="none")(linear(w), images, 1).flatten(1), slope * w)
    for score, slope in (("logit", -torch.ones_like(s)), ("prob", s * (s - 1)), ("logprob", -s), ("loss", s)):
        close(Gradient(score=score, reduce="none")(linear(w), images, 0).flatten(1), slope * w)


def test_gradient_of_constant_score_is_zero(function, images):
    assert not Gradient()(function(lambda x: x.new_ones(len(x), 3)), images).any()
    assert not Gradient()(function(lambda x: (0 * x).flatten(1)), images).any()


def test_gradient_survives_in_place_first_layer(function, images):
    before = images.clone()
    model = function(lambda x: x.mul_(3).flatten(1).sum(1))
    close(Gradient()(model, images), torch.full((2, 8, 8), 3.0, dtype=torch.float64))
    assert torch.equal(images, before)


@pytest.mark.parametrize(("wrong", "match"), [({"reduce": "max"}, "got 'max'"), ({"score": "score"}, "got 'score'")])
def test_gradient_refuses_wrong_options(wrong, match, linear, images):
    with pytest.raises(ValueError, match=match):
        Gradient(**wrong)(linear(torch.ones(2, 128)), images)
