"""The demo: train a network on images with a shortcut, and test it with and without the shortcut."""

import logging
import warnings
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from interpretable_training.data import ShapesDataModule
from interpretable_training.mistakes import require_writable
from interpretable_training.modules import Classifier
from interpretable_training.recipes import Recipe, shortcut

from .errors import print_line

CUES = {
    "same": "as in training: {share:.0%} of the images hold the mark of their class",
    "none": "no marks",
    "swapped": "{share:.0%} of the images hold the mark of another class",
}
# Messages about hardware and products that do not concern the demo.
NOISE = ("GPU available", "TPU available", "HPU available", "litlogger", "litmodels", "`Trainer.fit` stopped")
WARNINGS = (".*does not have many workers.*", ".*LeafSpec.*", ".*exists and is not empty.*", ".*logging interval.*")


def demo(output: str = "runs", epochs: int = 3, seed: int = 0) -> dict[str, float]:
    """Train on images with a shortcut; test with, without and against it; print the results.

    Args:
        output: Folder for logs and checkpoints.
        epochs: Epochs of training.
        seed: Seed of weights and pictures.
    """
    if epochs < 1:
        raise ValueError(f"expected 1 epoch or more, got {epochs}; pass --epochs 3.")
    require_writable(output)
    hush()
    print_line(
        "Drawing images of six shapes, most of them with a small mark that names the class, and training on them."
    )
    recipe = shortcut(max_epochs=epochs, seed=seed, output=output)
    recipe.trainer.fit(recipe.module, recipe.data)
    accuracy = measure(recipe)
    print_line(describe_results(recipe, accuracy))
    return accuracy


def measure(recipe: Recipe) -> dict[str, float]:
    """Return the test accuracy of the best checkpoint for each kind of mark."""
    data = recipe.data
    assert isinstance(data, ShapesDataModule)  # what the recipe returns
    module = Classifier.load_from_checkpoint(best_checkpoint(recipe))
    tester = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    accuracy = {}
    for cue in CUES:
        other = ShapesDataModule(data.size, shortcut=data.shortcut, shortcut_val=cue, seed=data.seed)  # type: ignore[arg-type]
        accuracy[cue] = tester.test(module, other, verbose=False)[0]["test/accuracy"]
    return accuracy


def describe_results(recipe: Recipe, accuracy: dict[str, float]) -> str:
    """Return a table, its meaning and the paths of the results."""
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
            "A network that uses the shapes keeps its accuracy without the marks. Accuracy that is lost without marks,",
            "or with wrong ones, depended on the marks.",
            "",
            f"  checkpoint   {best_checkpoint(recipe)}",
            f"  report       {folder / 'report.html'}  (explanations during training: open it in a browser)",
            f"  curves       {folder / 'curves.png'}",
            f"  numbers      {folder / 'metrics.csv'}",
        ]
    )


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
