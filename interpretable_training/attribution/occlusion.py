"""Occlusion. Zeiler and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901

    D[b] = y(x) - y(x without patch b)                  (1)
    S[p] = mean of D[b] over the patches b that cover p  (2)

x: image. y: logit. Patches lie on a grid; the last of each row and column is cut at the border, every pixel is covered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import Attribution, full
from .core.batching import in_chunks
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score, take


@dataclass(frozen=True)
class Occlusion(Attribution):
    """Measure how much the score falls when a patch of the image is hidden.

    >>> Occlusion(patch=8, stride=4)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        patch: sides of a patch in pixels, one number for all axes or one for each.
        stride: distance of two patches, one number for all axes or one for each; at most `patch`.
        value: of hidden pixels, in units of the network's input, where 0 is the mean color of normalized images; a
            number, or a tensor that expands to the shape of the images.
        score: see `Gradient`.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    patch: int | Sequence[int] = 16
    stride: int | Sequence[int] = 8
    value: float | Tensor = 0.0
    score: Score = "logit"
    chunk_size: int | None = None

    @torch.no_grad()
    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        covers = self._covers(images)
        counts = torch.tensor([len(cover) for cover in covers])
        P, B = int(counts.prod()), len(images)
        value = self._value(images)
        y = full(prepared.score(images, target, self.score))
        total = torch.zeros(images[:, 0].shape, dtype=y.dtype, device=y.device)

        def hide(rows: slice) -> None:
            pair = torch.arange(rows.start, rows.stop, device=images.device)
            i, b = pair // P, pair % P
            inside = _patches(covers, b)
            output = prepared.run_fast(torch.where(inside[:, None], value[i], images[i]))
            D = y[i] - full(prepared.score_in(output, take(target, i), self.score))  # (1)
            total.index_add_(0, i, D.reshape(-1, *[1] * (total.ndim - 1)) * inside)

        in_chunks(hide, P * B, self.chunk_size, images)
        return total / _patches([cover.sum(0, keepdim=True) for cover in covers], torch.zeros(1).long())  # (2)

    def _value(self, images: Tensor) -> Tensor:
        value = torch.as_tensor(self.value, dtype=images.dtype, device=images.device)
        try:
            return value.expand_as(images)
        except RuntimeError:
            raise ValueError(
                f"expected a value that fits images {tuple(images.shape)}, got {tuple(value.shape)}; one per channel "
                f"has the shape {(images.shape[1], *[1] * (images.ndim - 2))}."
            ) from None

    def _covers(self, images: Tensor) -> list[Tensor]:
        """Return for each axis which pixels each patch covers, (patches, side)."""
        axes = images.ndim - 2
        patch, stride = (list(v) if isinstance(v, Sequence) else [v] * axes for v in (self.patch, self.stride))
        valid = len(patch) == len(stride) == axes and all(1 <= t <= k for k, t in zip(patch, stride))
        if not valid or any(v % 1 for v in patch + stride):
            raise ValueError(
                f"expected whole numbers 1 <= stride <= patch for {axes} axes, so that patches cover every pixel, "
                f"got patch {self.patch} and stride {self.stride}."
            )
        covers = []
        for side, k, t in zip(images.shape[2:], patch, stride):
            start = t * torch.arange(math.ceil(max(side - k, 0) / t) + 1, device=images.device)[:, None]
            p = torch.arange(side, device=images.device)
            covers.append((start <= p) & (p < start + k))
        return covers


def _patches(covers: Sequence[Tensor], b: Tensor) -> Tensor:
    """Return the pixels that the patches with the numbers b cover, (len(b), *spatial)."""
    inside = covers[-1][b % len(covers[-1])]
    for cover in reversed(covers[:-1]):
        b = b // len(covers[-1])
        covers = covers[:-1]
        rows = cover[b % len(cover)]
        inside = rows.reshape(*rows.shape, *[1] * (inside.ndim - 1)) * inside[:, None]
    return inside
