"""Errors of two gradients of images. Torres, thesis, chapter 4 ("A learning paradigm for interpretable gradients").

    E_MAE = 1/p ||d - d'||_1                                         (4.5)
    E_MSE = 1/p ||d - d'||_2^2                                       (4.6)
    E_cos = - <d, d'> / (||d||_2 ||d'||_2)                           (4.7)
    E_HI  = - sum over i of min(|d_i| / ||d||_1, |d'_i| / ||d'||_1)  (4.8)

d, d': gradients of one image, of p numbers each. All functions take (B, ...) and return (B,).

Differs from the thesis: (4.8) is printed with min(|d_i|, |d'_i|) / (||d||_1 ||d'||_1), which is not a similarity:
it changes with the scale of the loss and is -1 / ||d||_1 for equal images. `printed_histogram` is that form.
"""

from collections.abc import Callable

from torch import Tensor

Error = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 1e-12  # images with a norm below it have no gradient; their similarity is 0


def mae(d: Tensor, d2: Tensor) -> Tensor:
    """Return the mean absolute error.

    >>> mae(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([1.])
    """
    return (d - d2).abs().flatten(1).mean(1)  # (4.5)


def mse(d: Tensor, d2: Tensor) -> Tensor:
    """Return the mean squared error.

    >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    return (d - d2).square().flatten(1).mean(1)  # (4.6)


def cosine(d: Tensor, d2: Tensor) -> Tensor:
    """Return the negative cosine similarity, in [-1, 1].

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]])).round(decimals=4)
    tensor([-1.])
    """
    d, d2 = _unit(d, 2), _unit(d2, 2)
    return -(d * d2).sum(1)  # (4.7)


def histogram(d: Tensor, d2: Tensor) -> Tensor:
    """Return the negative intersection of the two histograms of magnitudes, in [-1, 0].

    >>> histogram(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    tensor([-0.7500])
    """
    return -_unit(d, 1).abs().minimum(_unit(d2, 1).abs()).sum(1)  # (4.8)


def printed_histogram(d: Tensor, d2: Tensor) -> Tensor:
    """Return the negative histogram intersection as the thesis prints it.

    >>> printed_histogram(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    tensor([-0.2500])
    """
    low = d.abs().minimum(d2.abs()).flatten(1).sum(1)
    norms = d.abs().flatten(1).sum(1) * d2.abs().flatten(1).sum(1)
    return -low / norms.clamp(min=SMALLEST)


def _unit(d: Tensor, p: int) -> Tensor:
    """Return each image as a vector (B, p) of p-norm 1, or of zeros where it has no gradient."""
    d = d.flatten(1)
    has_gradient = d.detach().norm(p, 1, keepdim=True) >= SMALLEST
    d = d.where(has_gradient, 0.0)
    return d / d.norm(p, 1, keepdim=True).where(has_gradient, 1.0)


ERRORS: dict[str, Error] = {"cosine": cosine, "mae": mae, "mse": mse, "histogram": histogram}
