"""Read the output of a layer, in any layout, as a grid of features (B, K, *spatial).

Feature maps come channels first (CNNs), channels last (Swin) or as tokens (B, N, K) behind prefix tokens such as CLS
(ViT). A layout is accepted only if its grid fits the images: H / h and W / w must be one whole stride, up to rounding
and the borders that convolutions remove. So 197 tokens x 64 and 197 x 197 attention are no grids.
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
    """The `layout` of an output ("first", "last" or "tokens"), its spatial `shape`, and its number of prefix tokens."""

    layout: str
    shape: tuple[int, ...]
    prefix: int = 0

    def read(self, A: Tensor) -> Tensor:
        """Return a view (B, K, *spatial) of the output `A` or of its gradient."""
        if self.layout == "first":
            return A
        if self.layout == "last":
            return A.movedim(-1, 1)
        return A[:, self.prefix :].transpose(1, 2).unflatten(2, self.shape)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


def find_grid(shape: Sequence[int], size: Sequence[int], prefix: int | None = None, strict: bool = True) -> Grid | None:
    """Return the grid of an output of `shape`, for images of spatial `size`; None if it is no grid.

    Args:
        prefix: number of prefix tokens, if known.
        strict: accept grids of padded convolutions of one stride only; otherwise a grid may lack wide borders, have
            another stride along each axis, or be a single cell.
    """
    n = len(size)
    if len(shape) == n + 2:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        for layout, grid in (("first", first), ("last", last)):
            if _one_stride(grid, size):
                return Grid(layout, grid)
        if not strict and (_cells(first) == 1 or _without_borders(first, size) or _separate_strides(first, size)):
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
    # Strides that turn an image side S into g cells if padding and rounding change g by up to `slack` cells.
    slack = 1.5 + 0.05 * g
    return S / (g + slack), S / (g - slack) if g > slack else math.inf


def _separate_strides(grid: Sequence[int], size: Sequence[int]) -> bool:
    return all(_one_stride((g, g), (S, S)) for g, S in zip(grid, size))


def _without_borders(grid: Sequence[int], size: Sequence[int]) -> bool:
    # Convolutions without padding remove the same border a along each axis: S = s g + a, up to the rounding of s.
    for s in range(1, min(S // g for g, S in zip(grid, size)) + 1) if min(grid) > 0 else ():
        borders = [S - s * g for g, S in zip(grid, size)]
        if max(borders) - min(borders) < s and max(borders) <= min(size) / 2:
            return True
    return False


def _cells(grid: Sequence[int]) -> int:
    return math.prod(grid)


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return all submodules under all of their names, without the names that `torch.compile` inserts."""
    named = module.named_modules(remove_duplicate=False)
    return {".".join(part for part in name.split(".") if part != COMPILED): child for name, child in named}


def layer_name(module: nn.Module, name: str) -> str:
    """Return the full name of a layer that is given without the name of the part that holds it, or with one too many.

    >>> layer_name(nn.ModuleDict({"network": network}), "0"), layer_name(network, "network.0")
    ('network.0', '0')
    """
    named = named_layers(module)
    if name in named:
        return name
    inside = [f"{part}.{name}" for part, _ in module.named_children() if f"{part}.{name}" in named]
    rest = name.partition(".")[2]
    return inside[0] if len(inside) == 1 else rest if rest and rest in named else name


def prefix_tokens(module: nn.Module, layer: str) -> int | None:
    """Return `num_prefix_tokens` of the module around `layer` (timm models have it), None if no module has it."""
    parts = layer.split(".")
    for depth in range(len(parts)):
        prefix = getattr(module.get_submodule(".".join(parts[:depth])), "num_prefix_tokens", None)
        if isinstance(prefix, int):
            return prefix
    return None


def first_tensor(output: Any) -> Tensor | None:
    """Return the output of a module if it is a floating point tensor, or the first of several; otherwise None."""
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    return tensor if isinstance(tensor, Tensor) and tensor.is_floating_point() else None


def with_first(output: Any, tensor: Tensor) -> Any:
    """Return the output of a module with `tensor` in place of `first_tensor`."""
    if hasattr(output, "_fields"):
        return type(output)(tensor, *output[1:])
    return type(output)([tensor, *output[1:]]) if isinstance(output, (tuple, list)) else tensor
