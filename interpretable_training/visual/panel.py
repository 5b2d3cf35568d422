"""Rows of pictures, each row under one name."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def draw_panel(rows: Mapping[str, Tensor], path: str | Path, blocks: int = 1, inch: float = 0.9) -> None:
    """Draw a PNG with one row per name.

    Args:
        rows: Name of the row -> pictures, uint8 (N, H, W, 3); as many in each row.
        path: File to write.
        blocks: Columns of rows beside each other.
        inch: Side of a picture.
    """
    from matplotlib.figure import Figure  # here, because it takes a second; Figure has no global state

    count = len(next(iter(rows.values())))
    lines = -(-len(rows) // blocks)
    label = 0.085 * max(map(len, rows)) + 0.1  # inches for the names
    width, height = blocks * (label + inch * count), lines * inch
    figure = Figure(figsize=(width, height))
    for index, (name, pictures) in enumerate(rows.items()):
        block, line = divmod(index, lines)
        left, bottom = block * (label + inch * count) + label, height - (line + 1) * inch
        figure.text((left - 0.07) / width, (bottom + inch / 2) / height, name, ha="right", va="center", fontsize=9)
        for column, picture in enumerate(pictures):
            place = ((left + column * inch) / width, bottom / height, 0.97 * inch / width, 0.97 * inch / height)
            axes = figure.add_axes(place)
            axes.imshow(picture.numpy())
            axes.set_axis_off()
    figure.savefig(path, dpi=120)
