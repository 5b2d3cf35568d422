from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import InputXGradient

close = partial(assert_close, rtol=0, atol=1e-9)


def test_input_x_gradient_sums_to_logit_of_linear_model(linear, images):
    model = linear(torch.randn(3, 128, dtype=torch.float64))
    phi = InputXGradient(reduce="signed_sum")(model, images, 2)
    close(phi.sum((1, 2)), model(images)[:, 2])


def test_input_x_gradient_of_zero_image_is_zero(linear, images):
    assert not InputXGradient()(linear(torch.ones(2, 128)), 0 * images).any()


@pytest.mark.parametrize(("reduce", "expected"), [("abs_of_sum", 2.0), ("max_abs", 8.0), ("abs_sum", 14.0)])
def test_input_x_gradient_reduces_after_the_product(reduce, expected, linear):
    """x = 2 under weights 1, -4, 2."""
    x = torch.full((1, 3, 1, 1), 2.0, dtype=torch.float64)
    S = InputXGradient(reduce=reduce)(linear([[1.0, -4, 2]]), x)
    close(S, torch.full((1, 1, 1), expected, dtype=torch.float64))


def test_input_x_gradient_default_is_absolute_sum():
    assert InputXGradient().reduce == "abs_of_sum"


def test_input_x_gradient_multiplies_with_pixel(linear, images):
    """x std + mean, times a gradient that stays the one of the normalized input."""
    w = torch.randn(1, 128, dtype=torch.float64)
    phi = InputXGradient(reduce="none", mean=(0.4, 0.5), std=(0.2, 0.3))(linear(w), images)
    for channel, (mean, std) in enumerate([(0.4, 0.2), (0.5, 0.3)]):
        close(phi[:, channel], (images[:, channel] * std + mean) * w.view(2, 8, 8)[channel])


def test_input_x_gradient_of_cubic_score(function, images):
    """y = sum of x^3 / 3 has x times gradient x^3."""
    close(InputXGradient(reduce="none")(function(lambda x: x.pow(3).flatten(1).sum(1) / 3), images), images**3)
