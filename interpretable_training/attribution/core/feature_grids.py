"""Read a layer's output as a grid of features: (B, K, *spatial), whatever the layer's own layout is.

Feature maps come channels first (CNNs), channels last (Swin) or as tokens (B, N, K) behind prefix tokens such as CLS
(ViT). A layout is believed only if its grid fits the images': H / h and W / w must be one whole stride, up to the
rounding and the borders that convolutions lose. So neither 197 tokens x 64 nor 197 x 197 attention is a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ._compat import COMPILED

MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Grid:
    """How to read one output: `layout` "first", "last" or "tokens", its spatial `shape`, and the prefix tokens."""

    layout: str
    shape: tuple[int, ...]
    prefix: int = 0

    def read(self, A: Tensor) -> Tensor:
        """(B, K, *spatial) view of the output `A` or of its gradient."""
        if self.layout == "first":
            return A
        if self.layout == "last":
            return A.movedim(-1, 1)
        return A[:, self.prefix :].transpose(1, 2).unflatten(2, self.shape)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


def find_grid(shape: Sequence[int], size: Sequence[int], prefix: int | None = None, strict: bool = True) -> Grid | None:
    """The grid in an output of `shape`, for images of spatial `size`; None if there is none.

    Args:
        prefix: number of prefix tokens, where the model says so.
        strict: believe in padded convolutions of one stride only; else a grid may have lost wide borders, have a stride
            of its own along each axis, or be a single cell.
    """
    n = len(size)
    if len(shape) == n + 2:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        for layout, grid in (("first", first), ("last", last)):
            if _one_stride(grid, size):
                return Grid(layout, grid)
        if not strict and (_cells(first) == 1 or _without_borders(first, size) or _strides_of_their_own(first, size)):
            return Grid("first", first)
    if len(shape) == 3 and n == 2:
        return _find_tokens(shape[1], size, prefix)
    return None


def _find_tokens(tokens: int, size: Sequence[int], prefix: int | None) -> Grid | None:
    H, W = size
    for p in range(MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
        cells = tokens - p
        h = round((max(cells, 0) * H / W) ** 0.5)
        if h and cells % h == 0 and _one_stride((h, cells // h), size):
            return Grid("tokens", (h, cells // h), p)
    return None


def _one_stride(grid: Sequence[int], size: Sequence[int]) -> bool:
    ranges = [_strides(g, S) for g, S in zip(grid, size)]
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    return _cells(grid) > 1 and math.ceil(low) <= high


def _strides(g: int, S: int) -> tuple[float, float]:
    # The strides that explain a side g of an image side S if padding and rounding changed it by up to `slack` cells.
    slack = 1.5 + 0.05 * g
    return S / (g + slack), S / (g - slack) if g > slack else math.inf


def _strides_of_their_own(grid: Sequence[int], size: Sequence[int]) -> bool:
    return all(_one_stride((g, g), (S, S)) for g, S in zip(grid, size))


def _without_borders(grid: Sequence[int], size: Sequence[int]) -> bool:
    # Convolutions without padding take the same border a from both sides: S = s g + a, up to the rounding of s.
    for s in range(1, min(S // g for g, S in zip(grid, size)) + 1) if min(grid) > 0 else ():
        borders = [S - s * g for g, S in zip(grid, size)]
        if max(borders) - min(borders) < s and max(borders) <= min(size) / 2:
            return True
    return False


def _cells(grid: Sequence[int]) -> int:
    return math.prod(grid)


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules under all of their names; those of compiled modules as if they were not."""
    named = module.named_modules(remove_duplicate=False)
    return {".".join(part for part in name.split(".") if part != COMPILED): child for name, child in named}


def prefix_tokens(module: nn.Module, layer: str) -> int | None:
    """How many tokens stand before the image's, where the model around `layer` says so (timm does)."""
    parts = layer.split(".")
    for depth in range(len(parts)):
        prefix = getattr(module.get_submodule(".".join(parts[:depth])), "num_prefix_tokens", None)
        if isinstance(prefix, int):
            return prefix
    return None


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a module returned, or the first of several."""
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def with_first(output: Any, tensor: Tensor) -> Any:
    """What a module returned, with `tensor` in the place of `first_tensor`."""
    if hasattr(output, "_fields"):
        return type(output)(tensor, *output[1:])
    return type(output)([tensor, *output[1:]]) if isinstance(output, (tuple, list)) else tensor
