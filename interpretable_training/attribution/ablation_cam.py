"""Ablation-CAM. Desai and Ramaswamy, WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360

    w[k] = (y - y[without k]) / y              (1)
    S    = relu(sum over k of w[k] A[k])       (2)

A: activations of `layer`. y: logit. y[without k]: with A[k] set to zero. With pooling and one linear layer W behind
`layer`, y - y[without k] = W[c, k] mean(A[k]) needs no further pass.
Differs from the paper: (1) divides by |y|, because division by a negative logit changes the sign of the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .cam import linear_head
from .core.base import GradientCAM, full
from .core.batching import in_chunks
from .core.capture import capture, get_layer
from .core.feature_grids import Grid, first_tensor, with_first
from .core.precision import wide
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, class_weights, take
from .grad_cam_plusplus import away_from_zero


class _Place(NamedTuple):
    layer: str
    grid: Grid
    runs: int  # of the layer in one pass


@dataclass(frozen=True)
class AblationCAM(GradientCAM):
    """Weight the channels of a layer by how much the score falls without each of them.

    >>> AblationCAM()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        denominator: of (1): |y| ("absolute"), y ("signed") or 1 ("none"). It changes the sign and the scale of the map.
        chunk_size: ablated channels per pass through the layers above `layer`.
    """

    denominator: Literal["absolute", "signed", "none"] = "absolute"
    chunk_size: int = 256

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        captured = capture(prepared, images, [layer], target, gradient=False)
        A = full(captured.A[layer])
        y = full(prepared.score_in(captured.output, target, self.score))
        W = linear_head(prepared, A, captured.output) if self.score == "logit" else None
        if W is not None and isinstance(target, Tensor):
            drop = class_weights(W, target) * A.flatten(2).mean(2)
        else:
            place = _Place(layer, captured.grids[layer], captured.runs[layer])
            drop = y[:, None] - self._without(prepared, images, target, place, A)
        w = drop / self._divisor(y)[:, None]  # (1)
        return torch.einsum("bk,bk...->b...", w, A)  # (2)

    def _divisor(self, y: Tensor) -> Tensor:
        if self.denominator == "none":
            return torch.ones_like(y)
        return away_from_zero(y.abs() if self.denominator == "absolute" else y)

    @torch.no_grad()
    def _without(self, prepared: PreparedModel, images: Tensor, target: Resolved, place: _Place, A: Tensor) -> Tensor:
        """Return y[without k], (B, K); channels that are zero already need no pass."""
        y = A.new_zeros(A.shape[:2])
        splits = _splits(prepared, images[:1], place)
        for i, used in enumerate(A.flatten(2).any(2)):
            channels = torch.cat([(~used).nonzero()[:1, 0], used.nonzero()[:, 0]])
            one = slice(i, i + 1)
            scores = self._run(prepared, images[one], take(target, one), place, channels, splits)
            y[i] = scores[0].to(y)  # removing a channel of zeros leaves the score
            y[i, channels] = scores.to(y)
        return y

    def _run(
        self, prepared: PreparedModel, image: Tensor, target: Resolved, place: _Place, channels: Tensor, splits: bool
    ) -> Tensor:
        """Return the scores of one image without each of `channels`, (len(channels),)."""
        scores = image.new_zeros(len(channels), dtype=wide(image))

        def run(rows: slice) -> None:
            k = channels[rows]
            inputs = image if splits else image.expand(len(k), *image.shape[1:])
            with _ablated(prepared, place, k):
                part = target.expand(len(k)) if isinstance(target, Tensor) else target
                output = prepared.run(inputs)
                prepared.rows[0] = len(k)  # the layer may have enlarged the batch
                scores[rows] = prepared.score_in(output, part, self.score).to(scores)

        in_chunks(run, len(channels), self.chunk_size, image)
        return scores


@contextmanager
def _ablated(prepared: PreparedModel, place: _Place, channels: Tensor) -> Iterator[None]:
    # At its last run, the layer returns one copy of its output per channel, with that channel set to zero. For an input
    # of one image, the layers below process one image and the layers above process all copies.
    count = 0

    def ablate(_: Any, args: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        A = first_tensor(output)
        if count < place.runs or A is None:
            return output
        A = A.expand(len(channels), *A.shape[1:]).clone()
        place.grid.read(A)[torch.arange(len(channels), device=A.device), channels] = 0
        return with_first(output, A)

    handle = get_layer(prepared.module, place.layer).register_forward_hook(ablate)
    try:
        yield
    finally:
        handle.remove()


def _splits(prepared: PreparedModel, image: Tensor, place: _Place) -> bool:
    # Return whether the batch may grow at the layer; a later concatenation with features from below it prevents that.
    channels = torch.tensor([0, 0], device=image.device)
    with _ablated(prepared, place, channels):
        whole = prepared(image.expand(2, *image.shape[1:]))
    try:
        with _ablated(prepared, place, channels):
            grown = prepared(image)
    except RuntimeError:
        return False
    return grown.shape == whole.shape and bool(torch.allclose(grown, whole, rtol=1e-3, atol=1e-3))
