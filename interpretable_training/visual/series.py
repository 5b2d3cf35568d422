"""Series of several channels under the maps that explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretable_training.files import save_figure

from .map_levels import map_levels, map_scales
from .overlay import color_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP, LINE = 0.32, 0.62  # inches: height of the row of a map, and of a channel
ORANGE = torch.tensor([1.0, 0.72, 0.36])


def draw_series(
    series: Tensor,
    maps: Tensor | Mapping[str, Tensor],
    path: str | Path,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    known: Tensor | None = None,
    known_name: str = "known",
    order: Sequence[int] | None = None,
) -> None:
    """Draw a PNG with a column for each series: a strip for each map, and a line for each channel.

    The first map is repeated in orange behind the lines. Each map has its own scale, as over images.

    >>> draw_series(torch.randn(2, 3, 20), {"gradcam": torch.rand(2, 20)}, "series.png")

    Args:
        series: The explained series (B, C, T).
        maps: Raw maps (B, T), or several by name.
        path: File to write.
        names: Names of the channels.
        titles: Titles of the series.
        known: Time steps (B, T) at which the answer is known to lie; a green bar marks them.
        known_name: Name of this bar.
        order: Channels to draw, from top to bottom; by default all.
    """
    from matplotlib.figure import Figure  # imported late, because it takes a second; Figure has no global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    strips = {"map": maps} if isinstance(maps, Tensor) else dict(maps)
    B, C, T = _check_shapes(series, strips, known)
    channels = list(range(C)) if order is None else list(order)
    names = [f"channel {c}" for c in range(C)] if names is None else names
    for what, given, wanted in (("names", names, C), ("titles", titles, B)):
        if given is not None and len(given) != wanted:
            raise ValueError(f"expected {wanted} {what}, got {len(given)}: {list(given)}.")
    if not set(channels) <= set(range(C)):
        raise ValueError(f"expected channels from 0 to {C - 1} in order, got {channels}.")
    heights = [STRIP] * len(strips) + [LINE] * len(channels)
    layout = ConstrainedLayoutEngine(h_pad=0.01, w_pad=0.03, hspace=0, wspace=0.02)
    figure = Figure(figsize=(1.2 + 3.2 * B, sum(heights) + 0.8), layout=layout)
    grid = figure.subplots(
        len(heights), B, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    first = next(iter(strips.values()))
    for b in range(B):
        column = list(grid[:, b])
        for axes, (name, S) in zip(column, strips.items()):
            _draw_strip(axes, color_table()[(_own_levels(S[b]) * 256).long().clamp(max=255)])
            _label_row(axes, name if b == 0 else "")
        for axes, c in zip(column[len(strips) :], channels):
            _draw_strip(axes, 1 - _own_levels(first[b])[:, None] * (1 - ORANGE))
            axes.plot(range(T), series[b, c].detach().float().cpu(), color="black", linewidth=1.1)
            _label_row(axes, names[c] if b == 0 else "")
        if known is not None:
            _mark_steps(column[0], known[b], known_name if b == 0 else "")
        column[0].set_title("" if titles is None else titles[b], fontsize=10, pad=10)
        column[-1].set_xlim(-0.5, T - 0.5)
        column[-1].set_xlabel("time step", fontsize=9)
        column[-1].tick_params(axis="x", bottom=True, labelbottom=True, labelsize=8)
    save_figure(figure, path, 130)


def _check_shapes(series: Tensor, maps: Mapping[str, Tensor], known: Tensor | None) -> tuple[int, int, int]:
    """Return B, C, T; raise ValueError where maps or known time steps do not fit the series."""
    if series.ndim != 3:
        raise ValueError(f"expected series (B, C, T), got {tuple(series.shape)}; draw images with overlay.")
    B, C, T = series.shape
    if not B:
        raise ValueError(f"expected at least one series, got {tuple(series.shape)}.")
    for name, S in maps.items():
        if tuple(S.shape) != (B, T):
            raise ValueError(f"expected a map ({B}, {T}) of {name!r}, got {tuple(S.shape)}.")
    if known is not None and tuple(known.shape) != (B, T):
        raise ValueError(f"expected known time steps ({B}, {T}), got {tuple(known.shape)}.")
    if not maps:
        raise ValueError("expected at least one map, got none.")
    return B, C, T


def _own_levels(S: Tensor) -> Tensor:
    """Return the map (T,) of one series in [0, 1]."""
    S = S.detach().float().cpu().nan_to_num()[None, None]
    return map_levels(S, map_scales(S))[0, 0]


def _draw_strip(axes: Axes, colors: Tensor) -> None:
    """Draw a color (T, 3) for each time step as the background of a row."""
    position: dict[str, Any] = {"extent": (-0.5, len(colors) - 0.5, 0, 1), "transform": axes.get_xaxis_transform()}
    axes.imshow(colors[None].numpy(), aspect="auto", interpolation="nearest", **position)


def _label_row(axes: Axes, name: str) -> None:
    """Write the name of a row at its left, and remove its ticks."""
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def _mark_steps(axes: Axes, known: Tensor, name: str) -> None:
    """Draw a bar above the row over the marked time steps (T,), and its name at the left."""
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}  # in units of the row's height
    for start, end in stretches(known):
        axes.plot([start - 0.5, end - 0.5], [1.15, 1.15], color="C2", linewidth=4, solid_capstyle="butt", **above)
    if name:
        axes.annotate(
            name, (0, 1.15), (-6, 0), axes.transAxes, "offset points", color="C2", ha="right", va="center", fontsize=9
        )


def stretches(known: Tensor) -> list[tuple[int, int]]:
    """Return start and end of each stretch of marked time steps (T,); the end is the step behind it."""
    off = torch.zeros(1, dtype=torch.int)
    edges = torch.cat([off, known.cpu().int(), off]).diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()))
