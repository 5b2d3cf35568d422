"""The demo: a network that is right for the wrong reason, and three numbers that give it away."""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier
from interpretable_training.recipes import Recipe, shortcut

from .errors import require_writable

CUES = {
    "same": "as in training: {share:.0%} of the images hold the mark of their class",
    "none": "no marks",
    "swapped": "{share:.0%} of the images hold the mark of another class",
}
# Advice about hardware and products that a demo on a laptop has no use for.
NOISE = ("GPU available", "TPU available", "HPU available", "litlogger", "litmodels", "`Trainer.fit` stopped")
WARNINGS = (".*does not have many workers.*", ".*LeafSpec.*", ".*exists and is not empty.*", ".*logging interval.*")


def demo(output: str = "runs", epochs: int = 3, seed: int = 0) -> dict[str, float]:
    """Train on images with a shortcut, test with, without and against it, print what came out.

    Args:
        output: Folder for logs and checkpoints.
        epochs: Epochs of training.
        seed: Seed of weights and pictures.
    """
    if epochs < 1:
        raise ValueError(f"expected 1 epoch or more, got {epochs}; pass --epochs 3.")
    require_writable(output)
    hush()
    say("Drawing images of six shapes, most of them with a small mark that names the class, and training on them.")
    recipe = shortcut(max_epochs=epochs, seed=seed, output=output)
    recipe.trainer.fit(recipe.module, recipe.data)
    accuracy = measure(recipe)
    say(report(recipe, accuracy))
    return accuracy


def measure(recipe: Recipe) -> dict[str, float]:
    """Test accuracy of the best checkpoint for each kind of mark."""
    data = recipe.data
    assert isinstance(data, ShapesDataModule)  # what the recipe returns
    module = Classifier.load_from_checkpoint(best_checkpoint(recipe))
    tester = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    accuracy = {}
    for cue in CUES:
        other = ShapesDataModule(data.size, shortcut=data.shortcut, shortcut_val=cue, seed=data.seed)  # type: ignore[arg-type]
        accuracy[cue] = tester.test(module, other, verbose=False)[0]["test/accuracy"]
    return accuracy


def report(recipe: Recipe, accuracy: dict[str, float]) -> str:
    """A table, what it means, and where the rest lies."""
    assert isinstance(recipe.data, ShapesDataModule)
    folder = Path(recipe.trainer.log_dir or ".")
    rows = [
        f"  {cue:<8} {accuracy[cue]:>8.1%}   {text.format(share=recipe.data.shortcut)}" for cue, text in CUES.items()
    ]
    return "\n".join(
        [
            "",
            "  test marks   accuracy",
            *rows,
            "",
            "A network that looked at the shapes would not care about the marks: what it loses without them, and more",
            "so with wrong ones, it had learned from the marks.",
            "",
            f"  checkpoint   {best_checkpoint(recipe)}",
            f"  report       {folder / 'report.html'}  (where the network looked, step by step: open it in a browser)",
            f"  curves       {folder / 'curves.png'}",
            f"  numbers      {folder / 'metrics.csv'}",
        ]
    )


def best_checkpoint(recipe: Recipe) -> str:
    """Path of the weights with the best validation accuracy."""
    checkpoint = recipe.trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)  # what the recipe has
    return checkpoint.best_model_path


def say(text: str) -> None:
    """Print a line; the demo is a command."""
    sys.stdout.write(f"{text}\n")


def hush() -> None:
    """Leave out known messages that say nothing about the demo."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(part in record.getMessage() for part in NOISE))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
