"""Learning curves: one panel per quantity, one line per split."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from interpretable_training.files import save_figure

SPLITS = {"train": "C0", "val": "C1"}


def draw_curves(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draw loss and accuracy (or mAP) per epoch into a PNG.

    >>> rows = [{"epoch": 0, "train/loss": 2.0}, {"epoch": 1, "train/loss": 1.0, "val/accuracy": 0.7}]
    >>> draw_curves(rows, "curves.png")

    Args:
        rows: One per epoch, with the keys `epoch` and `split/name`; keys may be absent.
        path: File to write.
    """
    from matplotlib.figure import Figure  # imported late, because it takes a second; Figure has no global state

    logged = {key for row in rows for key in row}
    names = [name for name in ("loss", "accuracy", "mAP") if any(f"{split}/{name}" in logged for split in SPLITS)]
    if not names:
        raise ValueError(
            f"expected rows with keys such as 'train/loss' or 'val/accuracy', got the keys {sorted(logged)}; "
            "log these names."
        )
    figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for split, color in SPLITS.items():
            points = [(row["epoch"], row[f"{split}/{name}"]) for row in rows if f"{split}/{name}" in row]
            if points:
                axes.plot(*zip(*points), marker=".", color=color, label=split)
        if name != "loss":
            axes.set_ylim(0, 1.02)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, 120)
