"""Backgrounds swapped between the images of a batch, for any LightningModule.

`on_train_batch_start` replaces the images of the batch, on their device, before `training_step` gets them;
`on_train_batch_end` puts the former ones back, for loaders that yield the same tensors again.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interpretable_training.batches.read import Picked, describe, pick
from interpretable_training.batches.replacing import replace_images
from interpretable_training.metrics.core.regions import NoRegionError, pixels
from interpretable_training.regularization import SwapBackgrounds
from interpretable_training.regularization.background_swap import generator_of_step

PATIENCE = 8  # batches without the annotation before a training stops


class BackgroundSwap(L.Callback):
    """Give training images the background of other images of their batch, so that it predicts no class.

    Batches hold a `mask` (B, H, W) or `boxes` (B, n, 4). Images with an empty mask, or without a box, keep their
    background and lend none. Targets, masks, boxes and other entries stay as they are. Draws depend on the seed, the
    epoch, the batch and the process alone: a resumed training repeats them, and no other random number changes.

    >>> BackgroundSwap(SwapBackgrounds(share=0.5, widen=3)).swap.from_epoch
    1

    Args:
        swap: What is swapped, where and from which epoch on.
        image_key: Name or index of the images in a batch; by default the usual names.
    """

    def __init__(
        self,
        swap: SwapBackgrounds = SwapBackgrounds(),  # noqa: B008  frozen
        image_key: int | str | None = None,
    ) -> None:
        self.swap, self.image_key = swap, image_key
        self.put_back: Callable[[], Any] | None = None
        self.batches = self.without_entry = 0
        self.annotated: Tensor | None = None  # number of images so far, on their device

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches, self.without_entry, self.annotated = 0, 0, None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.restore()  # of a step that was left early
        picked = pick(batch, self.image_key)
        objects = self.objects_of(picked, batch)
        if objects is None or trainer.current_epoch < self.swap.from_epoch:
            return
        images = picked.images
        key = (self.swap.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        with torch.no_grad():
            swapped = self.swap(images, objects, generator_of_step(images.device, *key))
        self.put_back = replace_images(batch, images, swapped)

    def objects_of(self, picked: Picked, batch: Any) -> Tensor | None:
        """Return the pixels of the objects (B, H, W); None for a batch without annotations."""
        images, self.batches = picked.images, self.batches + 1
        size = (len(images), *images.shape[2:])
        try:
            objects = pixels(picked.rest, self.swap.region, size, images.device)
        except NoRegionError as error:
            self.without_entry += 1
            if self.without_entry == self.batches >= PATIENCE:
                raise self.nothing_to_swap(f"{error.args[0]} in batches, got {describe(batch)}") from error
            return None
        n = objects.flatten(1).any(1).sum()
        self.annotated = n if self.annotated is None else self.annotated + n
        return objects

    def on_train_batch_end(self, *_: Any) -> None:
        self.restore()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()
        if self.batches and not (self.annotated is not None and self.annotated > 0):
            what = "no entry for it" if self.annotated is None else "empty masks and boxes only"
            raise self.nothing_to_swap(f"an image with an object, got {what} in the {self.batches} batches of an epoch")

    def on_exception(self, *_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the images of the loader back."""
        if self.put_back is not None:
            self.put_back()
            self.put_back = None

    def nothing_to_swap(self, problem: str) -> ValueError:
        return ValueError(
            f"expected {problem}; make batches dicts that carry masks (B, H, W) or boxes (B, n, 4), as "
            "ShapesDataModule(annotations=True) does."
        )
