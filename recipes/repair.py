"""Detect, fix, prove: train a network on images with a cue that names the class, and mend it.

    python -m interpretable_training.recipes repair --remedy background_swap
    python -m interpretable_training.recipes repair_table --data marks

The second command trains the network without and with each remedy, with masks for 1, 10 and 100 % of the training
images, and two controls: training on clean data, and a swap of random regions, which costs as much as the swap of
backgrounds. It writes a table of means over seeds with 95 % intervals, and a picture. Remedies that do harm stay in the
table. Each training leaves its numbers in the folder: a table that was interrupted goes on where it stopped.
"""

import json
import statistics
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.attribution import GradCAM
from interpretable_training.batches.read import Picked
from interpretable_training.callbacks import BackgroundSwap, ExplanationGuidance, ExplanationLogger, TrainingCurves
from interpretable_training.data import DigitsDataModule, SeededDataModule, ShapesDataModule
from interpretable_training.evaluation import evaluate
from interpretable_training.files import aligned, write_whole
from interpretable_training.metrics import EnergyPointingGame, PointingGame, WorstGroupAccuracy
from interpretable_training.modules import Classifier, retrain_last_layer
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.regularization import SwapBackgrounds
from interpretable_training.visual.dots import draw_dots

Kind = Literal["marks", "textures", "decoy_digits"]
Remedy = Literal["nothing", "random_swap", "background_swap", "energy", "input_gradient", "not_here"]
CUES = ("same", "none", "swapped")  # of test images: as in training, none, of another class
SHARES = (1.0, 0.1, 0.01)
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile of Student's t by the number of seeds


class RandomSwap(BackgroundSwap):
    """Control: swap what is outside of regions of the same shape at random places."""

    def objects_of(self, picked: Picked, batch: Any) -> Tensor | None:
        """Return the masks of the batch, all moved by half of the image."""
        objects = super().objects_of(picked, batch)
        return None if objects is None else objects.roll([side // 2 for side in objects.shape[1:]], (1, 2))


# A margin of the old background must not reach the cue: textures begin at the object, patches close to digits.
SWAPS: dict[Kind, SwapBackgrounds] = {
    "marks": SwapBackgrounds(),
    "textures": SwapBackgrounds(share=0.8, widen=0),
    "decoy_digits": SwapBackgrounds(widen=1),
}


def callbacks_of(remedy: Remedy, layer: str, data: Kind = "marks") -> list[L.Callback]:
    """Return the callbacks of a remedy."""
    late: dict[str, Any] = {"start_step": 200, "method": GradCAM(layer=layer)}
    remedies: dict[Remedy, list[L.Callback]] = {
        "nothing": [],
        "random_swap": [RandomSwap(SWAPS[data])],
        "background_swap": [BackgroundSwap(SWAPS[data])],
        "energy": [ExplanationGuidance("energy", weight=1.0, **late)],
        "input_gradient": [ExplanationGuidance("input_gradient", weight=0.01, **late)],
        "not_here": [ExplanationGuidance("energy", region="not_here", weight=1.0, **late)],
    }
    return remedies[remedy]


def make_data(data: Kind, shortcut: float, n_train: int = 6000, n_test: int = 1000, **options: Any) -> SeededDataModule:
    """Return images with a cue, with masks of object and cue, and groups."""
    if data == "decoy_digits":
        return DigitsDataModule(16, margin=0.125, annotations=True, shortcut=shortcut, **options)
    cue: Literal["mark", "background"] = "mark" if data == "marks" else "background"
    options |= {"n_train": n_train, "n_test": n_test, "annotations": True}
    return ShapesDataModule(64, shortcut=shortcut, cue=cue, **options)


def digits_network() -> nn.Sequential:
    """Return a small network that uses patches: unlike one with average pooling it sees which corner they are in."""
    stages = {
        "stage1": nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        "stage2": nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "head": nn.Linear(32 * 4 * 4, 10),
    }
    return nn.Sequential(OrderedDict(stages))


def repair(
    data: Kind = "marks",
    remedy: Remedy = "background_swap",
    annotated: float = 1.0,
    shortcut: float = 0.95,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 10,
    layer: str = "stage2",
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a small network on images with a cue, with a remedy.

    Args:
        data: Shapes with small "marks", shapes on class-correlated "textures", or "decoy_digits".
        remedy: What keeps the network from using the cue; "nothing" trains a network that cheats.
        annotated: Share of the training images with a mask.
        shortcut: Share of the training images with the cue of their class.
        n_train: Number of training images of shapes.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        layer: Layer to explain and to guide.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    images = make_data(data, shortcut, n_train, annotated=annotated, batch_size=batch_size, seed=seed)
    module = Classifier(
        digits_network() if data == "decoy_digits" else "tiny_cnn",
        images.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
    )
    watch = ExplanationLogger({"gradcam": GradCAM(layer=layer)}, max_images=12, target="label")
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="repair"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(), TrainingCurves(), watch, *callbacks_of(remedy, layer, data)],
    )
    return Recipe(trainer, module, images)


def measure_repair(
    recipe: Recipe, n_test: int = 1000, layer: str = "stage2", max_images: int = 300
) -> dict[str, float]:
    """Return accuracies by test cues, that of the worst group, and where the maps lie on images as in training."""
    data, network = recipe.data, recipe.module.network.eval()  # type: ignore[union-attr]
    assert isinstance(data, (ShapesDataModule, DigitsDataModule))  # what the recipe returns
    worst, numbers = WorstGroupAccuracy(min_images=5), {}
    kind: Kind = "decoy_digits" if isinstance(data, DigitsDataModule) else "marks"
    kind = "textures" if getattr(data, "cue", None) == "background" else kind
    for cue in CUES:
        test = make_data(kind, data.shortcut or 0.95, n_test=n_test, shortcut_val=cue, seed=data.seed)
        test.setup("test")
        batches = list(test.test_dataloader())
        logits = torch.cat([predict(network, batch["image"]) for batch in batches])
        target, group = (torch.cat([batch[name] for batch in batches]) for name in ("target", "group"))
        worst.update(logits, target, group)
        numbers[cue] = 100 * float((logits.argmax(1) == target).float().mean())
        if cue == "same":
            numbers |= where_maps_lie(network, test, layer, max_images)
    return {**numbers, "worst group": 100 * float(worst.compute())}


def repair_report(recipe: Recipe, n_test: int = 1000) -> str:
    """Return where the trained network looks and how well it does without the cue."""
    numbers = measure_repair(recipe, n_test)
    return aligned([["test images", "percent"], *([name, f"{value:.1f}"] for name, value in numbers.items())])


@torch.no_grad()
def predict(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Return logits, on the CPU."""
    device = next(network.parameters()).device
    return network(images.to(device)).cpu()


def where_maps_lie(network: torch.nn.Module, data: L.LightningDataModule, layer: str, n: int) -> dict[str, float]:
    """Return the share of Grad-CAM's energy on object and cue, and how often its peak lies there, in percent."""
    metrics = {
        "energy on object": EnergyPointingGame(region="mask"),
        "energy on cue": EnergyPointingGame(region="shortcut_mask"),
        "peak on object": PointingGame(region="mask"),
        "peak on cue": PointingGame(region="shortcut_mask"),
    }
    options: dict[str, Any] = {"split": "test", "max_images": n, "controls": False, "progress": False}
    table = evaluate(network, {"gradcam": GradCAM(layer=layer)}, metrics, data, target="label", **options)
    return {name: table["gradcam", name].mean for name in metrics}


@dataclass(frozen=True)
class RepairTable:
    """Rows of a comparison of remedies; `run` trains what has not been trained yet.

    >>> RepairTable("marks", seeds=1, folder="runs/repair_table", options={}).rows()[:2]
    [('nothing', 1.0), ('clean data', 1.0)]
    """

    data: Kind
    seeds: int
    folder: str
    options: dict[str, Any]

    def rows(self) -> list[tuple[str, float]]:
        """Return remedies and shares of annotated images."""
        masks = [(name, share) for name in ("background_swap", "energy", "input_gradient") for share in SHARES]
        before = [("nothing", 1.0), ("clean data", 1.0), ("random_swap", 1.0)]
        return [*before, *masks, ("not_here", 1.0), ("last layer, true groups", 1.0)]

    def run(self) -> str:
        """Train, measure and write the table after each seed; return it."""
        text = ""
        for seed in range(self.seeds):
            for name, share in self.rows():
                self.numbers(name, share, seed)
            text = self.write(seed + 1)
        return text

    def numbers(self, name: str, share: float, seed: int) -> dict[str, float]:
        """Return the numbers of one training, from its file where it has been done."""
        file = Path(self.folder) / f"{self.data}-{name}-{share:g}-{seed}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            numbers = self.train(name, share, seed)
            write_whole(file, json.dumps(numbers))
            print(file.stem, {key: round(value, 2) for key, value in numbers.items()}, flush=True)  # noqa: T201
        return json.loads(file.read_text())

    def train(self, name: str, share: float, seed: int) -> dict[str, float]:
        """Train one row with one seed, and measure it."""
        options = {"data": self.data, "annotated": share, "seed": seed, "output": self.folder, **self.options}
        last_layer, clean = name.startswith("last layer"), name == "clean data"
        options |= {"remedy": "nothing" if last_layer or clean else name} | ({"shortcut": 0.0} if clean else {})
        recipe = repair(**options)
        recipe.trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        start = time.process_time()
        recipe.trainer.fit(recipe.module, recipe.data)
        if last_layer:
            balanced = make_data(self.data, 0.5, seed=seed)
            retrain_last_layer(recipe.module, balanced, seed=seed)
        seconds = time.process_time() - start
        return {**measure_repair(recipe), "seconds": seconds}

    def write(self, seeds: int) -> str:
        """Write table and picture of the seeds so far; return the table as text."""
        plain = [self.numbers("nothing", 1.0, seed)["seconds"] for seed in range(seeds)]
        lines = []
        for name, share in self.rows():
            runs = [self.numbers(name, share, seed) for seed in range(seeds)]
            for run, seconds in zip(runs, plain):
                run["cost"] = run.pop("seconds") / seconds
            lines.append((f"{name}, {share:.0%} masks", {key: [run[key] for run in runs] for key in runs[0]}))
        head = ["remedy", *lines[0][1]]
        rows = [head, *([title, *map(mean_and_interval, columns.values())] for title, columns in lines)]
        markdown = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows[1:]])
        write_whole(Path(self.folder) / f"{self.data}.md", markdown + "\n")
        shown = {"swapped": "accuracy, wrong cues (%)", "energy on object": "energy on object (%)"}
        draw_dots(dict(lines), shown, Path(self.folder) / f"{self.data}.png")
        return aligned(rows)


def mean_and_interval(values: list[float]) -> str:
    """Return the mean of the seeds and the half-width of its 95 % interval."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    half = STUDENT[min(len(values), 5)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3g} ± {half:.2g}"


def repair_table(
    data: Kind = "marks", seeds: int = 5, n_train: int = 6000, max_epochs: int = 10, output: str = "runs/repair_table"
) -> RepairTable:
    """Compare all remedies.

    Args:
        data: See `repair`.
        seeds: How many trainings of each row.
        n_train: See `repair`.
        max_epochs: See `repair`.
        output: Folder of the table, the picture and the numbers of each training.
    """
    return RepairTable(data, seeds, output, {"n_train": n_train, "max_epochs": max_epochs})


def repair_table_report(table: RepairTable) -> str:
    """Train what is missing, and return the table with the names of the files."""
    return f"{table.run()}\n\nWritten to {table.folder}: {table.data}.md, {table.data}.png"
