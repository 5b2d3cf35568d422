"""The images with the largest losses of a validation, collected while it runs, without a further pass."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.attribution.core.targets import pick_logits
from interpretable_training.batches.read import pick
from interpretable_training.callbacks.watching.explanations import losses
from interpretable_training.callbacks.watching.image_panel import indexed
from interpretable_training.callbacks.watching.options import WatchOptions
from interpretable_training.tasks.network import output_of


@dataclass
class HardImage:
    """Image, label and loss of one of the hardest images."""

    loss: float
    id: int  # below zero where the index in the data set is not known
    image: Tensor  # (C, H, W), on the CPU
    label: Tensor


class HardestImages:
    """Read the logits that the network returns in `validation_step`, and store the images with the largest losses.

    A hook reads the logits, for the time of a batch. Hardest images are unavailable when `validation_step` does not
    call the network, or the network is compiled as a part of the step.

    Args:
        k: number of images.
        options: how batches and outputs are read.
    """

    def __init__(self, k: int, options: WatchOptions) -> None:
        self.k, self.options = k, options
        self.images: list[HardImage] = []
        self.output: Any = None
        self.squared = False  # whether the loss is that of a regression
        self.handle: torch.utils.hooks.RemovableHandle | None = None
        self.position = 0  # in this process
        self.batches = 0  # in which the hook was registered

    def start(self) -> None:
        """Drop the images of the last validation."""
        self.stop()
        self.images, self.position, self.batches = [], 0, 0

    def listen(self, network: nn.Module, squared: bool = False) -> None:
        """Register the hook, before a batch."""
        self.stop()
        self.squared = squared
        if self.k:
            self.handle = network.register_forward_hook(self.keep_output)

    def keep_output(self, network: nn.Module, args: Any, output: Any) -> None:
        """Store the output of the first call in a batch."""
        if self.output is None:  # later calls are those of other callbacks after the step
            self.output = output

    def stop(self) -> None:
        """Remove the hook, after a batch or an error in it."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.output = None

    @property
    def unavailable(self) -> bool:
        """Whether no step called the network."""
        return self.batches > 0 and self.position == 0

    def take(self, trainer: L.Trainer, batch: Any) -> None:
        """Compare the losses of a batch with the largest so far."""
        output = self.output
        self.batches += self.handle is not None
        self.stop()
        if not self.k or output is None:
            return
        picked = pick(batch, self.options.image_key, self.options.label_key)
        logits = pick_logits(output, output_of(output, self.options.output)).detach()
        n = len(picked.images)
        start, self.position = self.position, self.position + n
        if picked.target is None or len(logits) != n:
            return
        loss = losses(logits, picked.target, self.squared)
        if loss is None:
            return
        loss = loss.nan_to_num(nan=float("inf"))
        floor = self.images[-1].loss if len(self.images) == self.k else -float("inf")
        for row in loss.topk(min(self.k, n)).indices.tolist():
            if float(loss[row]) > floor:
                image, label = picked.images[row].detach().cpu().clone(), picked.target[row].detach().cpu().clone()
                # Ranks take turns where Lightning shares a loader among them.
                index = trainer.global_rank + trainer.world_size * (start + row)
                index = index if ordered(trainer) else -1 - int(checksum(image), 16)
                self.images.append(HardImage(float(loss[row]), index, image, label))
        self.images = sorted(self.images, key=lambda image: -image.loss)[: self.k]


def ordered(trainer: L.Trainer) -> bool:
    """Whether an image's number in its validation is its index in the data set."""
    loaders = trainer.test_dataloaders if trainer.state.fn == "test" else trainer.val_dataloaders
    if not isinstance(loaders, DataLoader):
        return False
    shared = isinstance(loaders.sampler, DistributedSampler) and not loaders.sampler.shuffle
    return not indexed(loaders) or shared or isinstance(loaders.sampler, SequentialSampler)
