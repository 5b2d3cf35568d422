"""Finds what is watched in the stage that runs, as soon as there is something to be seen."""

from dataclasses import replace
from typing import Any

import lightning as L
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from interpretable_training.batches.read import pick
from interpretable_training.callbacks.watching.context import Images, Options, RunContext, build_context, find_panel
from interpretable_training.callbacks.watching.image_panel import Panel


class Scenery:
    """The scene of the stage that runs, found once."""

    def __init__(self, images: Images, n: int, options: Options) -> None:
        self.images, self.n, self.options = images, n, options
        self.clear()

    def clear(self) -> None:
        """Forget the stage before."""
        self.scene: RunContext | None = None
        self.collector: Collector | None = None
        self.told = False  # whether it was said what was found

    def find(self, trainer: L.Trainer, pl_module: L.LightningModule) -> RunContext | None:
        """What is watched; None until there is something, and in a process that has no images."""
        if self.scene is None:
            panel = find_panel(trainer, self.images, self.n, self.options)
            if panel is None:
                self.collector = self.collector or Collector(-(-self.n // trainer.world_size), self.options)
                panel = self.collector.panel(trainer.global_rank, trainer.world_size)
            if panel is None or (not panel.batches and trainer.global_rank > 0):
                return None
            self.scene = build_context(trainer, pl_module, panel, self.options)
        network = pl_module.get_submodule(self.scene.network_name)
        if network is not self.scene.network:  # the project has put another one in its place
            self.scene = replace(self.scene, network=network)
        return self.scene

    @property
    def waits(self) -> bool:
        """Whether the images are to be taken from the batches that pass by."""
        return self.scene is None and self.collector is not None

    def take(self, batch: Any) -> None:
        """Take a batch that passes by."""
        if self.collector is not None:
            self.collector.take(batch)


class Collector:
    """Takes the first images of the batches that pass by, where none can be read by index."""

    def __init__(self, n: int, options: Options) -> None:
        self.n, self.options, self.seen = n, options, 0
        self.batches: list[Any] = []

    def take(self, batch: Any) -> None:
        """Keep a copy of a batch on the CPU, as long as there are too few."""
        if self.seen < self.n:
            images = pick(batch, self.options.image_key, self.options.label_key).images
            self.batches.append(apply_to_collection(batch, Tensor, lambda t: t.detach().cpu().clone()))
            self.seen += len(images)

    def panel(self, rank: int, world: int) -> Panel | None:
        """What was taken; the processes' images take turns in their numbers."""
        if not self.batches:
            return None
        ids = list(range(rank, rank + world * self.seen, world))
        return Panel(ids, self.batches, "the first of the stream", ready=True)
