"""Curves of insertion, deletion and similar metrics: the mean score while pixels change, with a confidence band."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interpretable_training.files import save_figure

if TYPE_CHECKING:
    from interpretable_training.evaluation import Table

MANY = 10  # lines whose names no longer fit into the axes


def draw_faithfulness(table: Table, path: str | Path) -> None:
    """Draw a PNG with a panel for each curve of a table and a line for each method; controls are dashed.

    Bands are the 95 % interval of the mean: 1.96 standard errors on each side.

    >>> from interpretable_training.attribution import GradCAM
    >>> from interpretable_training.metrics import Insertion, evaluate
    >>> draw_faithfulness(evaluate(network, [GradCAM()], [Insertion(steps=4)], [(images, target)]), "curves.png")
    """
    from matplotlib.figure import Figure  # imported late, because it takes a second; Figure has no global state

    first = next(iter(table.curves.values()))
    panels = [(metric, kind) for metric, kinds in first.items() for kind in kinds]
    if not panels:
        raise ValueError(
            f"expected a table with curves, got one of {list(table.metrics)}; add Insertion() or Deletion() to the "
            "metrics."
        )
    many = len(table.curves) > MANY
    figure = Figure(
        figsize=((7.5 if many else 4.5) * len(panels), max(3.8, 0.2 * len(table.curves))), layout="constrained"
    )
    for axes, (metric, kind) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for color, (method, curves) in enumerate(table.curves.items()):
            n, total, squares = curves[metric][kind].double()
            mean = total / n
            error = ((squares / n - mean**2).clamp(min=0) / (n - 1).clamp(min=1)).sqrt()
            x = _percentages(table, metric, len(mean))
            style = {"color": f"C{color % 10}", "linestyle": ("-", (0, (8, 2)), (0, (4, 1, 1, 1)))[color // 10 % 3]}
            if method in table.controls:
                style = {"color": "0.5", "linestyle": ("--", ":", "-.")[table.controls.index(method) % 3]}
            label = f"{method}  {table[method, metric].mean:.1f}"
            axes.plot(x, mean, label=label, **style)
            axes.fill_between(x, mean - 1.96 * error, mean + 1.96 * error, color=style["color"], alpha=0.15, lw=0)
        passport = table.passports[metric]
        axes.set(title=f"{kind} ({metric})" if kind != metric else kind, xlabel="% of the pixels")
        axes.set_ylabel(f"{passport['score']} of the class")
        axes.grid(alpha=0.3)
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if many else {}
        axes.legend(fontsize=8, title=f"{passport['direction']}", title_fontsize=8, **beside)
    save_figure(figure, path, 120)


def _percentages(table: Table, metric: str, points: int) -> list[float]:
    """Return the percentage of changed pixels at each point of a curve; by default evenly from 0 to 100."""
    listed = table.passports[metric].get("percentages")
    return [float(q) for q in str(listed).split()] if listed else [100 * j / (points - 1) for j in range(points)]
