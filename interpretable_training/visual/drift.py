"""How far explanations are from earlier ones, look by look."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

STYLES = {"previous": "-", "first": "--", "best": ":"}


def draw_drift(history: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Tensor:
    """Draw similarity and shift of each method, uint8 (H, W, 3).

    Args:
        history: one entry per look, with `step` and `values`, whose names are `xai/<method>/<kind>_<reference>`.
        methods: names of the methods.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, because it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained", dpi=120)
    for axes, kind in zip(figure.subplots(1, 2), ("similarity", "shift")):
        for color, method in enumerate(methods):
            for reference, style in STYLES.items():
                key = f"xai/{method}/{kind}_{reference}"
                points = [(look["step"], look["values"][key]) for look in history if key in look["values"]]
                if points:
                    label = f"{method}, {reference}"
                    axes.plot(*zip(*points), style, color=f"C{color}", marker=".", label=label)
        axes.set(title=f"{kind} to the {', '.join(STYLES)} look", xlabel="step")
        axes.set_ylim(-1.05 if kind == "similarity" else -0.05, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
