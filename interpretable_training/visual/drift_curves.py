"""Curves of the drift: how far explanations are from earlier ones, step by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

STYLES = {"previous": "-", "first": "--", "best": ":"}


def draw_drift(history: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Tensor:
    """Draw similarity and shift of each method: uint8 (H, W, 3).

    >>> values = {"xai/gradcam/similarity_first": 0.9, "xai/gradcam/shift_first": 0.1}
    >>> draw_drift([{"step": 10, "values": values}], ["gradcam"]).shape
    torch.Size([420, 1080, 3])

    Args:
        history: One entry per explanation step, with `step` and `values` named `xai/<method>/<kind>_<reference>`.
        methods: Names of the methods.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late, because it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained", dpi=120)
    for axes, kind in zip(figure.subplots(1, 2), ("similarity", "shift")):
        for color, method in enumerate(methods):
            for reference, style in STYLES.items():
                key = f"xai/{method}/{kind}_{reference}"
                points = [(entry["step"], entry["values"][key]) for entry in history if key in entry["values"]]
                if points:
                    label = f"{method}, {reference}"
                    axes.plot(*zip(*points), style, color=f"C{color}", marker=".", label=label)
        axes.set(title=f"{kind} to the {', '.join(STYLES)} explanation", xlabel="step")
        axes.set_ylim(-1.05 if kind == "similarity" else -0.05, 1.05)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
