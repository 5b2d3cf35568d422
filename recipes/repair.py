"""Detect, fix, prove: train a network on images with a cue that names the class, and mend it.

    python -m interpretable_training.recipes repair --remedy background_swap
    python -m interpretable_training.recipes repair_table --data marks

The second command trains the network without and with each remedy, with masks for 1, 10 and 100 % of the training
images, and two controls: training on clean data, and a swap of random regions, which costs as much as the swap of
backgrounds. It writes a table of means over seeds with 95 % intervals, and a picture. Remedies that do harm stay in the
table. Each training leaves its numbers in the folder: a table that was interrupted goes on where it stopped.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ExplanationLogger, TrainingCurves
from interpretable_training.files import aligned, whole_file, write_whole
from interpretable_training.modules import Classifier
from interpretable_training.recipes.recipe import Recipe, stored_numbers
from interpretable_training.recipes.remedies import (
    Kind,
    Remedy,
    callbacks_of,
    digits_network,
    erase_found_cues,
    make_data,
    measure_repair,
    retrain_head,
)
from interpretable_training.visual.dots import draw_dots

SHARES = {1.0: 1, 0.1: 10, 0.01: 30}  # annotated training images, and how often each is in an epoch
LAYER = "stage2"  # to explain and to guide: fine enough for small cues
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile of Student's t by the number of seeds


def repair(
    data: Kind = "marks",
    remedy: Remedy = "background_swap",
    annotated: float = 1.0,
    shortcut: float = 0.95,
    repeat_annotated: int = 1,
    image_size: int = 64,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 10,
    layer: str = LAYER,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a small network on images with a cue, with a remedy.

    Args:
        data: Shapes with small "marks", shapes on class-correlated "textures", or "decoy_digits".
        remedy: What keeps the network from using the cue; "nothing" trains a network that cheats.
        annotated: Share of the training images with a mask.
        shortcut: Share of the training images with the cue of their class.
        repeat_annotated: How often each image with a mask is in an epoch.
        image_size: Side of images of shapes.
        n_train: Number of training images of shapes.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        layer: Layer to explain and to guide.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    options: dict[str, Any] = {"annotated": annotated, "repeat_annotated": repeat_annotated, "batch_size": batch_size}
    images = make_data(data, shortcut, n_train, image_size=image_size, seed=seed, **options)
    module = Classifier(
        digits_network() if data == "decoy_digits" else "tiny_cnn",
        images.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
    )
    module.to(memory_format=torch.channels_last)  # nearly twice as fast
    watch = ExplanationLogger({"gradcam": GradCAM(layer=layer)}, max_images=12, target="label")
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="repair"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(), TrainingCurves(), watch, *callbacks_of(remedy, layer, data, annotated)],
    )
    return Recipe(trainer, module, images)


def repair_report(recipe: Recipe, n_test: int = 1000) -> str:
    """Return where the trained network looks and how well it does without the cue."""
    numbers = measure_repair(recipe, n_test)
    return aligned([["test images", "percent"], *([name, f"{value:.1f}"] for name, value in numbers.items())])


@dataclass(frozen=True)
class RepairTable:
    """Rows of a comparison of remedies; `run` trains what has not been trained yet.

    A cost is processor time relative to that of plain training. Remedies that start from the cheating network (the last
    layer, found cues) do not count its training.

    >>> RepairTable("marks", seeds=1, folder="runs/repair_table", options={}).rows()[:3]
    [('nothing', 0.0), ('clean data', 0.0), ('random_swap', 1.0)]
    """

    data: Kind
    seeds: int
    folder: str
    options: dict[str, Any]

    def rows(self) -> list[tuple[str, float]]:
        """Return remedies and shares of annotated training images."""
        masks = [(name, share) for name in ("background_swap", "energy", "input_gradient") for share in SHARES]
        before = [("nothing", 0.0), ("clean data", 0.0), ("random_swap", 1.0)]
        after = [("last layer, true groups", 0.0), ("last layer, found groups", 0.0), ("found cues erased", 0.0)]
        return [*before, *masks, ("not_here", 1.0), *after]

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
        return stored_numbers(file, lambda: self.train(name, share, seed))

    def train(self, name: str, share: float, seed: int) -> dict[str, float]:
        """Train one row with one seed, and measure it."""
        options = {"data": self.data, "annotated": share or 1.0, "seed": seed, "output": self.folder, **self.options}
        options["repeat_annotated"] = SHARES.get(share, 1)
        remedy: Remedy = name if name in get_args(Remedy) else "nothing"  # type: ignore[assignment]
        recipe = repair(**options, remedy=remedy, shortcut=0.0 if name == "clean data" else 0.95)
        recipe.trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        assert isinstance(recipe.module, Classifier)  # what the recipe returns
        weights = Path(self.folder) / f"{self.data}-nothing-{seed}.pt"
        network = recipe.module.network
        if name.startswith(("last layer", "found")):
            self.numbers("nothing", 0.0, seed)  # which writes the weights
            cheating = digits_network() if self.data == "decoy_digits" else Classifier("tiny_cnn", 6).network
            cheating.load_state_dict(torch.load(weights))
        start = time.process_time()
        if name.startswith("last layer"):
            network.load_state_dict(torch.load(weights))
            found, size = name == "last layer, found groups", self.options["image_size"]
            retrain_head(recipe.module, self.data, LAYER, found, seed=seed, image_size=size)
        else:
            if name == "found cues erased":
                erase_found_cues(recipe, cheating, LAYER)
            recipe.trainer.fit(recipe.module, recipe.data)
        seconds = time.process_time() - start
        if name == "nothing":
            with whole_file(weights) as file:
                torch.save(network.state_dict(), file)
        return {**measure_repair(recipe), "seconds": seconds}

    def write(self, seeds: int) -> str:
        """Write table and picture of the seeds so far; return the table as text."""
        plain = [self.numbers("nothing", 0.0, seed)["seconds"] for seed in range(seeds)]
        lines = []
        for name, share in self.rows():
            runs = [self.numbers(name, share, seed) for seed in range(seeds)]
            for run, seconds in zip(runs, plain):
                run["cost"] = run.pop("seconds") / seconds
            title = f"{name}, {share:.0%} masks" if share else name
            lines.append((title, {key: [run[key] for run in runs] for key in runs[0]}))
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
    return f"{statistics.mean(values):.3g} ± {half_width(values):.2g}"


def half_width(values: list[float]) -> float:
    """Return the half-width of the 95 % interval of the mean of up to five seeds."""
    return STUDENT[min(len(values), 5)] * statistics.stdev(values) / len(values) ** 0.5


def repair_table(
    data: Kind = "marks",
    seeds: int = 5,
    image_size: int = 64,
    n_train: int = 3000,
    max_epochs: int = 8,
    output: str = "runs/repair_table",
) -> RepairTable:
    """Compare all remedies.

    Args:
        data: See `repair`.
        seeds: How many trainings of each row.
        image_size: See `repair`.
        n_train: See `repair`.
        max_epochs: See `repair`.
        output: Folder of the table, the picture and the numbers of each training.
    """
    options = {"image_size": image_size, "n_train": n_train, "max_epochs": max_epochs}
    return RepairTable(data, seeds, output, options)


def repair_table_report(table: RepairTable) -> str:
    """Train what is missing, and return the table with the names of the files."""
    return f"{table.run()}\n\nWritten to {table.folder}: {table.data}.md, {table.data}.png"
