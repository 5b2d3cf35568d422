"""The demo: a network that uses a shortcut is detected and repaired, and tested with and without the shortcut."""

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import BackgroundSwap
from interpretable_training.data import ShapesDataModule
from interpretable_training.evaluation.shortcuts import find_shortcuts
from interpretable_training.files import save_picture
from interpretable_training.mistakes import require_writable
from interpretable_training.modules import Classifier
from interpretable_training.recipes import Recipe, shortcut
from interpretable_training.visual import denormalize, draw_sheet, overlay

from .errors import print_line

CUES = {
    "same": "as in training: {share:.0%} of the images hold the mark of their class",
    "none": "no marks",
    "swapped": "{share:.0%} of the images hold the mark of another class",
}
METHOD = GradCAM(layer="stage2")  # the last stage is too coarse for marks of 8 pixels
# Messages about hardware and products that do not concern the demo.
NOISE = ("GPU available", "TPU available", "HPU available", "litlogger", "litmodels", "`Trainer.fit` stopped")
WARNINGS = (".*does not have many workers.*", ".*LeafSpec.*", ".*exists and is not empty.*", ".*logging interval.*")


def demo(output: str = "runs", epochs: int = 3, seed: int = 0) -> dict[str, dict[str, float]]:
    """Train on images with a shortcut, find the shortcut, train again without it, and compare; print the results.

    Args:
        output: Folder for logs and checkpoints.
        epochs: Epochs of each training.
        seed: Seed of weights and pictures.
    """
    if epochs < 1:
        raise ValueError(f"expected 1 epoch or more, got {epochs}; pass --epochs 3.")
    require_writable(output)
    hush()
    options: dict[str, Any] = {"max_epochs": epochs, "seed": seed, "output": output}
    print_line("1. Train on images of six shapes, most of them with a small mark that names the class.")
    cheats = shortcut(**options)
    cheats.trainer.fit(cheats.module, cheats.data)
    print_line("2. Search for shortcuts, without any annotation.")
    shortcuts = find_shortcuts(best_module(cheats).network, cheats.data, METHOD)
    print_line(f"   ShortcutFinder: {shortcuts.describe(cheats.data.class_names)}.")  # type: ignore[attr-defined]
    print_line("3. Train again; BackgroundSwap exchanges what lies outside of the objects between images.")
    repaired = shortcut(**options, every_n_steps=10_000)  # explain once an epoch: saves time
    repaired.trainer.callbacks.append(BackgroundSwap())  # type: ignore[attr-defined]
    repaired.trainer.fit(repaired.module, repaired.data)
    accuracy = {"cheats": measure(cheats), "repaired": measure(repaired)}
    picture = Path(repaired.trainer.log_dir or ".") / "before_and_after.png"
    draw_both(cheats, repaired, picture)
    print_line(describe_results(cheats, repaired, accuracy, picture))
    return accuracy


def measure(recipe: Recipe) -> dict[str, float]:
    """Return the test accuracy of the best checkpoint for each kind of mark."""
    data = recipe.data
    assert isinstance(data, ShapesDataModule)  # what the recipe returns
    tester = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    accuracy, module = {}, best_module(recipe)
    for cue in CUES:
        other = ShapesDataModule(data.size, shortcut=data.shortcut, shortcut_val=cue, seed=data.seed)  # type: ignore[arg-type]
        accuracy[cue] = tester.test(module, other, verbose=False)[0]["test/accuracy"]
    return accuracy


def draw_both(cheats: Recipe, repaired: Recipe, path: Path) -> None:
    """Draw validation images with the maps of both networks for their classes."""
    cheats.data.setup("validate")
    batch = next(iter(cheats.data.val_dataloader()))
    images, target = batch["image"][:8], batch["target"][:8]
    pictures = denormalize(images, cheats.data.mean, cheats.data.std)  # type: ignore[attr-defined]
    rows = {"image": (255 * pictures).byte().permute(0, 2, 3, 1)}
    for name, recipe in {"cheats": cheats, "repaired": repaired}.items():
        rows[name] = overlay(pictures, METHOD(best_module(recipe).network, images, target))
    save_picture(draw_sheet(rows), path)


def describe_results(cheats: Recipe, repaired: Recipe, accuracy: dict[str, dict[str, float]], picture: Path) -> str:
    """Return a table, its meaning and the paths of the results."""
    assert isinstance(cheats.data, ShapesDataModule)
    rows = [
        f"  {cue:<10} {accuracy['cheats'][cue]:>8.1%} {accuracy['repaired'][cue]:>10.1%}   "
        f"{text.format(share=cheats.data.shortcut)}"
        for cue, text in CUES.items()
    ]
    before, after = (Path(recipe.trainer.log_dir or ".") for recipe in (cheats, repaired))
    return "\n".join(
        [
            "",
            "  test marks   before   repaired",
            *rows,
            "",
            "A network that uses the shapes keeps its accuracy without the marks. Accuracy that is lost without marks,",
            "or with wrong ones, depended on the marks.",
            "",
            f"  maps         {picture}  (before and after)",
            f"  report       {before / 'report.html'}  (explanations while the network learns to cheat)",
            f"  report       {after / 'report.html'}  (and while it does not)",
            f"  numbers      {after / 'metrics.csv'}",
            f"  checkpoint   {best_checkpoint(repaired)}",
        ]
    )


def best_module(recipe: Recipe) -> Classifier:
    """Return the module of the checkpoint with the best validation accuracy, in eval mode."""
    return Classifier.load_from_checkpoint(best_checkpoint(recipe), map_location="cpu").eval()


def best_checkpoint(recipe: Recipe) -> str:
    """Return the path of the checkpoint with the best validation accuracy."""
    checkpoint = recipe.trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)  # what the recipe has
    return checkpoint.best_model_path


def hush() -> None:
    """Hide known messages that do not concern the demo."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(part in record.getMessage() for part in NOISE))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
