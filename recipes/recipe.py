"""Results of recipe functions: an experiment that trains, or a study that measures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from interpretable_training.attribution import explain
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.batches.read import pick
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.files import save_picture, write_whole
from interpretable_training.metrics import Table
from interpretable_training.visual import denormalize, draw_sheet, overlay


class Recipe(NamedTuple):
    """Experiment to run with `recipe.trainer.fit(recipe.module, recipe.data)`."""

    trainer: L.Trainer
    module: L.LightningModule
    data: L.LightningDataModule


class EvaluationRecipe(NamedTuple):
    """Measurement to run with `study.run()`.

    Attributes:
        trainer: Trainer that evaluates.
        module: Trained network.
        data: Images.
        options: Arguments of `EvaluationTrainer.evaluate`, such as `methods` and `metrics`.
    """

    trainer: EvaluationTrainer
    module: L.LightningModule
    data: L.LightningDataModule
    options: dict[str, Any]

    def run(self) -> Table:
        """Print the table, and write it, curves and passports into the folder of the log."""
        return self.trainer.evaluate(self.module, self.data, **self.options)

    def folder(self) -> Path:
        """Return the folder of the results."""
        return Path(self.trainer.log_dir or ".")

    def examples(self, count: int = 6) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the first image of each of the first classes, their targets, and their annotations."""
        self.data.setup("validate")
        items: dict[int, dict[str, Any]] = {}
        for batch in self.data.val_dataloader():
            images, target = pick(batch, strict=True).pair()
            facts = batch if isinstance(batch, dict) else {}
            for i, c in enumerate(target.tolist()):
                if len(items) < count:
                    items.setdefault(c, {"image": images[i], **{name: facts[name][i] for name in facts}})
            if len(items) == count:
                break
        chosen = [items[c] for c in sorted(items)]
        annotations = {name: [item[name] for item in chosen] for name in chosen[0]}
        return torch.stack(annotations["image"]), torch.tensor(sorted(items)), annotations

    def draw(self, path: str | Path, methods: dict[str, Attribution] | None = None, blocks: int = 1) -> None:
        """Draw the maps of the methods for an image of each class."""
        images, target, _ = self.examples()
        pictures = denormalize(images, self.data.mean, self.data.std)  # type: ignore[attr-defined]
        rows = {"image": (255 * pictures).byte().permute(0, 2, 3, 1)}
        device = self.module.device
        maps = explain(methods or self.options["methods"], self.module, images.to(device), target.to(device))
        rows |= {name: overlay(pictures, saliency) for name, saliency in maps.items()}
        save_picture(draw_sheet(rows, blocks=blocks), path)


def stored_numbers(file: Path, compute: Callable[[], Any]) -> Any:
    """Return what a JSON file holds; where there is none, compute and print it, and write the file.

    Args:
        file: File of one cell of a table, so that a long table goes on where it stopped.
        compute: Function that returns numbers.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        numbers = compute()
        write_whole(file, json.dumps(numbers))
        plain = {key: round(value, 2) for key, value in numbers.items() if isinstance(value, float)}
        sys.stdout.write(f"{file.stem} {plain}\n")
        sys.stdout.flush()
    return json.loads(file.read_text())
