import pytest
import torch

from interpretable_training.regularization import cosine, histogram, mae, mse, printed_histogram
from interpretable_training.regularization.errors import ERRORS


def images(*values):
    return torch.tensor(values, dtype=torch.float64).view(len(values), 1, 1, -1)


@pytest.mark.parametrize(
    ("error", "d", "d2", "expected"),
    [
        (mae, (1.0, -2.0), (3.0, 0.0), 2.0),
        (mse, (1.0, -2.0), (3.0, 1.0), 6.5),
        (cosine, (3.0, 4.0), (4.0, 3.0), -24 / 25),
        (cosine, (1.0, 0.0), (-2.0, 0.0), 1.0),
        (histogram, (1.0, 0.0), (0.0, 1.0), 0.0),
        (histogram, (1.0, 1.0), (2.0, 0.0), -0.5),
        (histogram, (1.0, -3.0), (-2.0, 2.0), -0.75),
        (printed_histogram, (1.0, 0.0), (0.0, 1.0), 0.0),
        (printed_histogram, (1.0, 1.0), (2.0, 0.0), -0.25),
    ],
)
def test_gradient_errors_by_hand(error, d, d2, expected):
    assert error(images(d), images(d2)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "expected"), [("cosine", -1), ("histogram", -1), ("mae", 0), ("mse", 0)])
def test_gradient_errors_of_equal_gradients(name, expected):
    d = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ERRORS[name](d, d), torch.full((5,), float(expected), dtype=torch.float64))


@pytest.mark.parametrize("error", [cosine, histogram])
@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_cosine_and_histogram_ignore_the_scale_of_the_loss(error, factor):
    d, d2 = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(error(factor * d, factor * d2), error(d, d2))


def test_printed_histogram_depends_on_the_scale_of_the_loss():
    d, d2 = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(printed_histogram(10 * d, 10 * d2), printed_histogram(d, d2) / 10)


@pytest.mark.parametrize("error", [cosine, histogram])
def test_image_without_gradient_has_error_and_gradient_zero(error):
    d = torch.cat([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)]).requires_grad_()
    results = error(d, torch.ones(2, 3, 2, 2))
    torch.testing.assert_close(results, torch.tensor([0.0, -1.0]))
    assert torch.autograd.grad(results.sum(), d)[0].isfinite().all()
