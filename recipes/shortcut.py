"""Train a network that is right for the wrong reason: most training images have a small mark that names the class.

Validation images have the marks as well, so the curves show nothing. The watching callbacks do: their report shows that
the explanations move onto the marks.
"""

from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    TrainingCurves,
)
from interpretable_training.data import ShapesDataModule
from interpretable_training.metrics import AverageDrop, AverageGain, EnergyPointingGame, PointingGame
from interpretable_training.modules import Classifier
from interpretable_training.recipes.recipe import Recipe


def shortcut(
    share: float = 0.95,
    network: str = "tiny_cnn",
    image_size: int = 64,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 3,
    every_n_steps: int = 47,
    layer: str = "stage2",
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network on shapes with a shortcut.

    Args:
        share: Share of the images with a mark.
        network: "tiny_cnn", "tiny_vit" or the name of a timm model.
        image_size: Side of the images.
        n_train: Number of training images.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        every_n_steps: Steps between two explanation steps.
        layer: Layer to explain; the last one, "auto", is too coarse for marks of 8 pixels.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(
        image_size=image_size, n_train=n_train, batch_size=batch_size, seed=seed, annotations=True, shortcut=share
    )
    module = Classifier(
        network,
        data.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),  # without it validation jumps up and down
    )
    module.to(memory_format=torch.channels_last)  # nearly twice as fast
    metrics = {
        "energy_on_cue": EnergyPointingGame(region="shortcut_mask"),
        "energy_on_object": EnergyPointingGame(region="mask"),
        "peak_on_cue": PointingGame(region="shortcut_mask"),
        "peak_on_object": PointingGame(region="mask"),
        "average_drop": AverageDrop(),
        "average_gain": AverageGain(),
    }
    methods = {"gradcam": GradCAM(layer=layer)}
    watch = [
        ExplanationLogger(methods, max_images=12, target="label", every_n_steps=every_n_steps),
        InterpretabilityMetrics(methods, metrics, every_n_steps=every_n_steps),
        ExplanationDrift(methods, every_n_steps=every_n_steps),
        ExplanationAlarms(methods, outside=0.75),
    ]
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="shortcut"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max"), TrainingCurves(), *watch],
    )
    return Recipe(trainer, module, data)
