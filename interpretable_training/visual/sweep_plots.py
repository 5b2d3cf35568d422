"""One picture of a sweep: a scatter plot of one or two parameters, parallel coordinates of more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpretable_training.files import save_figure

MAP = "viridis"


@dataclass(frozen=True)
class Scale:
    """Axis of one parameter.

    Args:
        name: The parameter.
        choices: Its values if it has a list of them; they have equal distances on the axis.
        log: Whether the axis is logarithmic.
    """

    name: str
    choices: Sequence[Any] | None = None
    log: bool = False

    def position(self, value: Any) -> float:
        """Return the position of a value on the axis."""
        return float(value) if self.choices is None else float(self.ordered().index(value))

    def ordered(self) -> list[Any]:
        """Return the choices, numbers by size."""
        assert self.choices is not None
        numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in self.choices)
        return sorted(self.choices) if numbers else [*self.choices]


def draw_sweep(
    scales: Sequence[Scale], runs: Sequence[tuple[Mapping[str, Any], float]], metric: str, path: str | Path
) -> None:
    """Draw the runs of a sweep into a PNG.

    >>> draw_sweep([Scale("lr", log=True)], [({"lr": 0.1}, 0.9), ({"lr": 1.0}, 0.5)], "val/accuracy", "sweep.png")

    Args:
        scales: The parameters that vary.
        runs: Parameters and metric of each run, the best run first; it is marked.
        metric: Name of the metric.
        path: File to write.
    """
    from matplotlib.figure import Figure  # imported late, because it takes a second; Figure has no global state

    if len(scales) > 2:
        figure = Figure(figsize=(1.6 * len(scales) + 2.4, 4.2), layout="constrained")
        _draw_parallel(figure, scales, runs, metric)
    else:
        figure = Figure(figsize=(5.5, 4), layout="constrained")
        _draw_scatter(figure, scales, runs, metric)
    save_figure(figure, path, 120)


def _draw_scatter(figure: Any, scales: Sequence[Scale], runs: Sequence[Any], metric: str) -> None:
    """Draw the metric over one parameter, or as the color over two."""
    axes = figure.subplots()
    x = [scales[0].position(parameters[scales[0].name]) for parameters, _ in runs]
    values = [value for _, value in runs]
    _label_axis(axes, "x", scales[0])
    if len(scales) == 1:
        y = values
        axes.scatter(x, y, zorder=2)
        axes.set_ylabel(metric)
    else:
        y = [scales[1].position(parameters[scales[1].name]) for parameters, _ in runs]
        points = axes.scatter(x, y, c=values, cmap=MAP, s=90, zorder=2)
        _label_axis(axes, "y", scales[1])
        figure.colorbar(points, ax=axes, label=metric)
    axes.scatter(x[0], y[0], s=220, facecolors="none", edgecolors="C3", linewidths=1.8, zorder=3, label="best")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _label_axis(axes: Any, which: str, scale: Scale) -> None:
    """Set name and ticks of an axis."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    getattr(axes, f"set_{which}label")(scale.name)
    if scale.choices is not None:
        axis.set_ticks(range(len(scale.choices)), [_short_label(value) for value in scale.ordered()])
    elif scale.log:
        getattr(axes, f"set_{which}scale")("log")


def _draw_parallel(figure: Any, scales: Sequence[Scale], runs: Sequence[Any], metric: str) -> None:
    """Draw a vertical axis per parameter and one for the metric, and a line per run in the color of its metric."""
    import matplotlib
    from matplotlib.colors import Normalize

    values = [value for _, value in runs]
    all_scales = [*scales, Scale(metric)]
    table = [[*(scale.position(p[scale.name]) for scale in scales), value] for p, value in runs]
    hosts = [figure.add_subplot(1, 1, 1)]
    hosts += [hosts[0].twinx() for _ in all_scales[1:]]
    for i, (axes, scale) in enumerate(zip(hosts, all_scales)):
        _label_axis(axes, "y", scale)
        axes.set_ylabel("")
        axes.set_ylim(*axis_limits([row[i] for row in table], scale))
        axes.spines[["top", "bottom", "right", "left"]].set_visible(False)
        side = "left" if scale is not all_scales[-1] else "right"
        axes.spines[side].set_visible(True)
        axes.spines[side].set_position(("axes", i / (len(all_scales) - 1)))
        axes.yaxis.set_ticks_position(side)
        for text in axes.get_yticklabels():  # readable on top of the lines
            text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
        axes.patch.set_visible(False)
    first = hosts[0]
    first.set_xlim(0, len(all_scales) - 1)
    first.set_xticks(range(len(all_scales)), [_two_lines(scale.name) for scale in all_scales])
    first.xaxis.tick_top()
    first.tick_params(axis="x", length=0, pad=8)
    color, norm = matplotlib.colormaps[MAP], Normalize(min(values), max(values))
    for k in reversed(range(len(runs))):  # the best one on top
        heights = [axis_share(axes, position) for axes, position in zip(hosts, table[k])]
        width, shade = (3.0, "C3") if k == 0 else (1.4, color(norm(values[k])))
        first.plot(
            range(len(heights)), heights, color=shade, linewidth=width, transform=first.get_xaxis_transform(),
            clip_on=False, label="best" if k == 0 else None,
        )  # fmt: skip
    first.legend(loc="upper left", bbox_to_anchor=(0, -0.02), frameon=False)


def axis_limits(positions: Sequence[float], scale: Scale) -> tuple[float, float]:
    """Return the ends of an axis, with a little room."""
    low, high = (0.0, len(scale.choices) - 1.0) if scale.choices is not None else (min(positions), max(positions))
    if scale.log:
        room = (high / low) ** 0.05 if high > low else 1.5
        return low / room, high * room
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def axis_share(axes: Any, position: float) -> float:
    """Return the share of the axis below a position."""
    low, high = axes.yaxis.get_transform().transform(list(axes.get_ylim()))
    return float((axes.yaxis.get_transform().transform([position])[0] - low) / (high - low))


def _short_label(value: Any) -> str:
    """Return a value in at most 16 letters."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else f"{text[:15]}…"


def _two_lines(name: str) -> str:
    """Return a long dotted name in two lines."""
    head, _, tail = name.rpartition(".")
    return f"{head}.\n{tail}" if head and len(name) > 12 else name
