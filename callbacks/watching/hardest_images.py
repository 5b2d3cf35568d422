"""The images on which the network is most wrong in a validation, found while it runs, at no further pass."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from interpretable_training.attribution.core.targets import pick_logits
from interpretable_training.batches.read import pick
from interpretable_training.callbacks.watching.context import Options
from interpretable_training.callbacks.watching.discovery import output_of
from interpretable_training.callbacks.watching.explained import losses
from interpretable_training.callbacks.watching.image_panel import indexed
from interpretable_training.metrics.core.base import checksum


@dataclass
class Bad:
    """An image with its loss."""

    loss: float
    id: int  # below zero where the index in the data set is not known
    image: Tensor  # (C, H, W), on the CPU
    label: Tensor


class Worst:
    """Reads the logits that the network returns in `validation_step`, and keeps the images with the largest losses.

    The network is listened to by a hook for the time of a batch. A network that `validation_step` does not call, or
    that is compiled as a part of the step, is not heard.
    """

    def __init__(self, k: int, options: Options) -> None:
        self.k, self.options = k, options
        self.kept: list[Bad] = []
        self.heard: Any = None
        self.handle: torch.utils.hooks.RemovableHandle | None = None
        self.position = 0  # in this process
        self.batches = 0  # that were listened to

    def start(self) -> None:
        """Forget the last validation."""
        self.stop()
        self.kept, self.position, self.batches = [], 0, 0

    def listen(self, network: nn.Module) -> None:
        """Before a batch."""
        self.stop()
        if self.k:
            self.handle = network.register_forward_hook(self.hear)

    def hear(self, network: nn.Module, args: Any, output: Any) -> None:
        if self.heard is None:  # later calls are those of other callbacks after the step
            self.heard = output

    def stop(self) -> None:
        """After a batch, or an error in it."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.heard = None

    @property
    def deaf(self) -> bool:
        """Whether the network said nothing in any of the batches."""
        return self.batches > 0 and self.position == 0

    def take(self, trainer: L.Trainer, batch: Any) -> None:
        """Compare the batch with what is kept."""
        output = self.heard
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
        loss = losses(logits, picked.target)
        if loss is None:
            return
        loss = loss.nan_to_num(nan=float("inf"))
        floor = self.kept[-1].loss if len(self.kept) == self.k else -float("inf")
        for row in loss.topk(min(self.k, n)).indices.tolist():
            if float(loss[row]) > floor:
                image, label = picked.images[row].detach().cpu().clone(), picked.target[row].detach().cpu().clone()
                # Ranks take turns where Lightning shares a loader among them.
                index = trainer.global_rank + trainer.world_size * (start + row)
                index = index if ordered(trainer) else -1 - int(checksum(image), 16)
                self.kept.append(Bad(float(loss[row]), index, image, label))
        self.kept = sorted(self.kept, key=lambda bad: -bad.loss)[: self.k]


def ordered(trainer: L.Trainer) -> bool:
    """Whether an image's number in its validation is its index in the data set."""
    loaders = trainer.test_dataloaders if trainer.state.fn == "test" else trainer.val_dataloaders
    if not isinstance(loaders, DataLoader):
        return False
    shared = isinstance(loaders.sampler, DistributedSampler) and not loaders.sampler.shuffle
    return not indexed(loaders) or shared or isinstance(loaders.sampler, SequentialSampler)
