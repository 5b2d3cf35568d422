"""Draw what the demo's network looks at, beside one that was trained without marks, into docs/images/shortcut.png.

python docs/make_shortcut_figure.py    # some minutes: both networks are trained on generated shapes
"""

import tempfile
from pathlib import Path

import torch

from interpretable_training.attribution import GradCAM
from interpretable_training.data import ShapesDataModule
from interpretable_training.recipes import baseline, shortcut
from interpretable_training.visual import denormalize, draw_sheet, overlay

FILE = Path(__file__).parent / "images" / "shortcut.png"


def main():
    data = ShapesDataModule(image_size=64, shortcut=1.0, n_test=36)
    data.setup("test")
    first = {target: image for image, target in reversed(list(data.splits["test"]))}
    images = torch.stack([first[target] for target in sorted(first)])
    pictures = denormalize(images, data.mean, data.std)
    rows = {"image with a mark": pictures.permute(0, 2, 3, 1).mul(255).byte()}
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in (("trained with marks", shortcut), ("trained without", baseline)):
            trainer, module, own = recipe(output=folder)
            trainer.fit(module, own)
            rows[name] = overlay(pictures, GradCAM()(module, images, sorted(first)))
    FILE.parent.mkdir(exist_ok=True)
    draw_sheet(rows, side=128).save(FILE)


if __name__ == "__main__":
    main()
