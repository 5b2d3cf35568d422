"""Train ResNet-18 or MobileNet-V2 on CIFAR-100 with a guided-gradient regularizer, as in the thesis.

200 epochs of SGD with batches of 128; the learning rate rises to 0.1 in the first epoch and is multiplied by 0.2 after
60, 120 and 160. Momentum, weight decay, warm-up and augmentation are those of
https://github.com/weiaicunzai/pytorch-cifar100, which the thesis follows. It validates on the test images.
"""

from functools import partial
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import MultiStepLR

from interpretable_training.callbacks import TrainingCurves
from interpretable_training.data import CIFAR100DataModule
from interpretable_training.modules import GuidedGradientClassifier
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.regularization import GuidedGradientRegularizer

STEPS_PER_EPOCH = 391  # 50 000 images in batches of 128


def guided_gradient_cifar100(
    network: Literal["cifar_resnet18", "cifar_mobilenetv2"] = "cifar_resnet18",
    error: Literal["cosine", "mae", "mse", "histogram"] = "cosine",
    weight: float = 7.5e-3,
    root: str = "data",
    download: bool = False,
    num_workers: int = 4,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network on CIFAR-100 as the thesis does.

    Args:
        network: Network to train.
        error: Comparison of the two gradients.
        weight: Weight of the regularizer; the thesis has 7.5e-3 for ResNet-18 and 1e-3 for MobileNet-V2.
        root: Folder that holds the data.
        download: Whether to download the data if they do not exist.
        num_workers: Processes that load batches.
        seed: Seed of weights and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = CIFAR100DataModule(root, download=download, batch_size=128, num_workers=num_workers, seed=seed)
    return protocol(data, network, GuidedGradientRegularizer(error, weight), output)


def protocol(
    data: L.LightningDataModule, network: str, regularizer: GuidedGradientRegularizer, output: str = "runs"
) -> Recipe:
    """Return the protocol of the thesis for any data of 32 x 32 pixels and 100 classes."""
    module = GuidedGradientClassifier(
        network,
        100,
        regularizer,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        scheduler=partial(MultiStepLR, milestones=[60, 120, 160], gamma=0.2),
        warmup_steps=STEPS_PER_EPOCH,
    )
    trainer = L.Trainer(
        max_epochs=200,
        logger=CSVLogger(output, name="guided_gradient_cifar100"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max"), TrainingCurves()],
    )
    return Recipe(trainer, module, data)
