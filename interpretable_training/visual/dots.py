"""Numbers of several runs as dots, a row for each setting."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from interpretable_training.files import save_figure

BLUE = "#0072B2"  # of the Okabe-Ito palette


def draw_dots(rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Mapping[str, str], path: str | Path) -> None:
    """Draw percentages: a dot for each run, a bar for their mean.

    >>> draw_dots({"plain": {"a": [40.0, 50.0]}, "mended": {"a": [90.0, 92.0]}}, {"a": "accuracy (%)"}, "dots.png")

    Args:
        rows: title -> column -> numbers of the runs, from top to bottom.
        columns: column -> title of its panel, from left to right.
        path: File to write.
    """
    figure = Figure(figsize=(1 + 4 * len(columns), 0.9 + 0.32 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, (column, title) in zip(panels, columns.items()):
        for i, row in enumerate(rows.values()):
            panel.plot(row[column], [i] * len(row[column]), "o", color=BLUE, alpha=0.5, markersize=4)
            panel.plot(statistics.mean(row[column]), i, "|", color="black", markersize=14)
        panel.set(title=title, xlim=(0, 100))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].invert_yaxis()
    save_figure(figure, path, dpi=150)
