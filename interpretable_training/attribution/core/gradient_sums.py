"""Sum gradients over many variants of each image: paths to a baseline, noisy copies."""

from collections.abc import Callable

import torch
from torch import Tensor

from .batching import in_chunks
from .input_gradients import input_gradient
from .prepared_model import PreparedModel
from .targets import Resolved, Score, take


def sum_over_inputs(
    prepared: PreparedModel,
    images: Tensor,
    target: Resolved,
    n: int,
    make: Callable[[Tensor, Tensor], Tensor],
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor],
    score: Score = "logit",
    chunk_size: int | None = None,
) -> Tensor:
    """Return the sum over s < n of `weigh(g[s], i, s)` for each image, with the gradient g[s] at `make(i, s)`.

    `i` and `s` are index tensors of one chunk: the images, and which of the n inputs of each. `weigh` may return any
    shape (len(i), ...); the sum is (B, ...).
    """
    total: Tensor | None = None

    def add(rows: slice) -> None:
        nonlocal total
        pair = torch.arange(rows.start, rows.stop, device=images.device)
        i, s = pair // n, pair % n
        part = weigh(input_gradient(prepared, make(i, s), take(target, i), score), i, s)
        before = part.new_zeros(len(images), *part.shape[1:]) if total is None else total
        total = before.index_add(0, i, part)

    in_chunks(add, n * len(images), chunk_size, images)
    assert total is not None  # there is at least one image and n >= 1
    return total


def per_input(values: Tensor, images: Tensor) -> Tensor:
    """Return one number per input, in a shape that multiplies images (B, C, ...)."""
    return values.to(images).reshape(-1, *[1] * (images.ndim - 1))
