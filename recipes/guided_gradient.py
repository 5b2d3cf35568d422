"""Train a small network on shapes or digits with a guided-gradient regularizer."""

from functools import partial
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.callbacks import TrainingCurves
from interpretable_training.data import DigitsDataModule, SeededDataModule, ShapesDataModule
from interpretable_training.modules import GuidedGradientClassifier
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.regularization import GuidedGradientRegularizer


def guided_gradient(
    data: Literal["shapes", "digits"] = "shapes",
    network: Literal["tiny_cnn", "cifar_resnet18", "cifar_mobilenetv2"] = "tiny_cnn",
    error: Literal["cosine", "mae", "mse", "histogram"] = "cosine",
    weight: float = 7.5e-3,
    every_n_steps: int = 1,
    fraction: float = 1.0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 8,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network with a guided-gradient regularizer.

    Args:
        data: Generated "shapes" in color of 64 x 64 pixels, or handwritten "digits" in gray of 32 x 32.
        network: Which network learns.
        error: How the two gradients are compared.
        weight: Weight of the regularizer; 0 trains without it and still measures the similarity in validation.
        every_n_steps: Regularize one step in so many.
        fraction: Share of each batch that is regularized.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    images: SeededDataModule
    if data == "shapes":
        images, channels = ShapesDataModule(image_size=64, n_train=6000, batch_size=batch_size, seed=seed), 3
    else:
        images, channels = DigitsDataModule(image_size=32, batch_size=batch_size, seed=seed), 1
    module = GuidedGradientClassifier(
        network,
        images.num_classes,
        GuidedGradientRegularizer(error, weight, every_n_steps, fraction=fraction),
        network_kwargs={"channels": channels},
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),  # without it validation jumps up and down
    )
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="guided_gradient"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max"), TrainingCurves()],
    )
    return Recipe(trainer, module, images)
