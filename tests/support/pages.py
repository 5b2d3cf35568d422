"""The blocks of code in README.md and docs/, and the names that they may use."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from interpretable_training import attribution, metrics
from interpretable_training.data import ShapesDataModule
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?^```(?P<kind>\w+)\n(?P<code>.*?)^```", re.M | re.S)
CLASSES = 6  # of the generated shapes


class Block(NamedTuple):
    """A block of a page."""

    line: int  # of the page, before the code
    code: str


def name_of(page):
    """The page's path, as pytest shows it."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


def blocks(page, *kinds):
    """The blocks in these languages, but for those with a reason not to run before them."""
    text = page.read_text()
    results = [block for block in BLOCK.finditer(text) if block["kind"] in kinds and not block["why"]]
    return [Block(text[: block.start("code")].count("\n"), block["code"]) for block in results]


def run(page, names):
    """Run the page's Python, one block after the other with the same names, which are returned."""
    for line, code in blocks(page, "python"):
        # Padded, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


def network(generator):
    """Four layers with the names that those of a ResNet have."""
    widths = (3, 8, 8, 12, 12)
    layers = OrderedDict(
        (f"layer{i}", nn.Sequential(nn.Conv2d(widths[i - 1], widths[i], 3, 1 + i % 2, 1), nn.ReLU()))
        for i in range(1, 5)
    )
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(widths[-1], CLASSES))
    results = nn.Sequential(layers)
    for parameter in results.parameters():
        with torch.no_grad():
            parameter.uniform_(-0.3, 0.3, generator=generator)
    return results.eval()


def prelude():
    """What a reader has: a model, images, a project, and the names of what the pages speak about."""
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(4, 3, 64, 64, generator=generator), torch.arange(4)
    model, other = network(generator), network(generator)
    mask = torch.zeros(4, 64, 64, dtype=torch.bool)
    mask[:, 16:40, 16:40] = True
    methods = {"gradcam": attribution.GradCAM(), "gradient": attribution.Gradient()}
    names = {
        "model": model,
        "other_model": other,
        "trained_on_random_labels": other,
        "images": images,
        "target": target,
        "labels": target,
        "mask": mask,
        "saliency": attribution.normalize(attribution.GradCAM()(model, images, target)),
        "prob": torch.rand(4, generator=generator),
        "prob_masked": torch.rand(4, generator=generator),
        "methods": methods,
        "criterion": nn.CrossEntropyLoss(),
        "module": Classifier(TinyCNN(CLASSES), CLASSES),
        "data": ShapesDataModule(64, batch_size=4),
        "trainer": L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False),
        "train_set": TensorDataset(images.repeat(13, 1, 1, 1), target.repeat(13)),
        "dataloader": DataLoader(TensorDataset(images, target), 4),
        "Classifier": Classifier,
        "TinyCNN": TinyCNN,
        "MetricCollection": MetricCollection,
        "ShapesDataModule": ShapesDataModule,
        "shapes_with_a_shortcut": ShapesDataModule(64, batch_size=4, annotations=True, shortcut=1.0),
    }
    public = {name: getattr(room, name) for room in (attribution, metrics) for name in room.__all__}
    return {**public, **names}
