"""Draw pictures and numbers of an offline run of W&B into docs/images/wandb.png, as its files hold them.

Captions are shortened.

interpretable-training fit --config shortcut --trainer.logger WandbLogger --trainer.logger.offline true
python docs/make_wandb_figure.py runs/wandb/offline-run-...
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.wandb_reader import Run  # noqa: E402

COLUMNS, STEPS = 5, 3  # pictures in a row; explanation steps
MAPS, PICTURES = "xai/gradcam", "xai/images"
CURVES = ("peak_on_cue", "peak_on_object", "average_drop")


def draw(run: Run) -> None:
    """Draw the panel at the first, the middle and the last step, and curves."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in run.rows if MAPS in row]
    chosen = [rows[round(i * (len(rows) - 1) / (STEPS - 1))] for i in range(STEPS)]
    lines = [(PICTURES, row) for row in run.rows if PICTURES in row][:1] + [(MAPS, row) for row in chosen]
    figure = plt.figure(figsize=(11, 7.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1.15))
    grid = left.subplots(len(lines), COLUMNS)
    for axes, (key, row) in zip(grid, lines):
        for ax, (file, caption) in zip(axes, run.images(row, key)):
            ax.imshow(np.asarray(Image.open(file)))
            shown = caption.split(" | ")  # number, prediction, label, explained class, facts of the map
            ax.set_xlabel("\n".join(shown[1:3] or shown), fontsize=7, labelpad=2)
            ax.set_xticks([]), ax.set_yticks([])
        step = row.get("trainer/global_step")
        axes[0].set_ylabel(key if key == PICTURES else f"{key}\nstep {step}", fontsize=8, family="monospace")
    for ax, name in zip(right.subplots(len(CURVES), 1, sharex=True), CURVES):
        key = f"{MAPS}/{name}"
        points = sorted((row["trainer/global_step"], row[key]) for row in run.rows if key in row)
        ax.plot(*zip(*points), marker=".")
        ax.set_title(key, fontsize=8, family="monospace")
        ax.tick_params(labelsize=7)
    ax.set_xlabel("trainer/global_step", fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "wandb.png", dpi=100)


if __name__ == "__main__":
    draw(Run(sys.argv[1]))
