"""Train a small convolutional network on generated shapes: the reference for the other experiments."""

from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.callbacks import TrainingCurves
from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier
from interpretable_training.recipes.recipe import Recipe


def baseline(
    network: str = "tiny_cnn",
    image_size: int = 64,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 8,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network on shapes without any shortcut.

    Args:
        network: "tiny_cnn", "tiny_vit" or the name of a timm model.
        image_size: Side of the images.
        n_train: Number of training images.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(image_size=image_size, n_train=n_train, batch_size=batch_size, seed=seed)
    module = Classifier(
        network,
        data.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),  # without it validation jumps up and down
    )
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="baseline"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max"), TrainingCurves()],
    )
    return Recipe(trainer, module, data)
