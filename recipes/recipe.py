"""What a recipe returns."""

from typing import NamedTuple

import lightning as L


class Recipe(NamedTuple):
    """An experiment, ready: `recipe.trainer.fit(recipe.module, recipe.data)`."""

    trainer: L.Trainer
    module: L.LightningModule
    data: L.LightningDataModule
