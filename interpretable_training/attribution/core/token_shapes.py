"""Shapes that features of a transformer have during a pass, from which the grid of its tokens follows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .feature_grids import MOST_PREFIX_TOKENS, Grid, find_grid

LAYERS = {F.linear, F.layer_norm, F.rms_norm}
CONVOLUTIONS = {F.conv2d, torch.conv2d}


class TokenShapes:
    """Numbers of tokens (B, T, C) or (T, B, C) and grids (B, C, h, w), (B, h, w, C) of the outputs of layers.

    Args:
        batch: B.

    Attributes:
        tokens: T of all layers; attention over channels or within windows has other sizes.
        grids: h, w of all layers, the last one first.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.tokens: set[int] = set()
        self.grids: list[tuple[int, int]] = []

    def read(self, func: Callable[..., Any], out: Any) -> None:
        """Note the shape of the output of a call."""
        if func in LAYERS and isinstance(out, Tensor) and out.ndim in (3, 4):
            if len(out) == self.batch:
                self.tokens.add(out.shape[1:-1].numel())
            elif out.ndim == 3 and out.shape[1] == self.batch:
                self.tokens.add(len(out))
            if out.ndim == 4:
                self._add(out.shape[1], out.shape[2])
        elif func in CONVOLUTIONS and out.ndim == 4:
            self._add(out.shape[2], out.shape[3])

    def _add(self, h: int, w: int) -> None:
        if not self.grids or self.grids[0] != (h, w):
            self.grids.insert(0, (h, w))

    def grid(self, tokens: int, size: Sequence[int]) -> Grid | None:
        """Return the grid of that many tokens, with the fewest prefix tokens, for images of spatial `size`."""
        grids = [(tokens - h * w, i, (h, w)) for i, (h, w) in enumerate(self.grids) if h * w > 1]
        for prefix, _, shape in sorted(grids):
            fits = find_grid((1, 1, *shape), size, strict=False) if 0 <= prefix <= MOST_PREFIX_TOKENS else None
            if fits is not None:
                return Grid("tokens", shape, prefix)
        return None
