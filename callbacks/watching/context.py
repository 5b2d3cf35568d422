"""The run context of a stage: the network, the panel of images, class names and colors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage
from torch import nn
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.batches.read import Picked, pick
from interpretable_training.callbacks.watching import _compat
from interpretable_training.callbacks.watching.discovery import find_class_names, find_network, output_for
from interpretable_training.callbacks.watching.image_panel import (
    Panel,
    choose_panel,
    first_loader,
    indexed,
    read_panel,
    seeded,
)
from interpretable_training.callbacks.watching.options import WatchOptions
from interpretable_training.visual.colors import Colors, find_colors


@dataclass(frozen=True)
class RunContext:
    """Network, panel, class names and colors of a run.

    Attributes:
        network_name: name of the network in the LightningModule, "" for the LightningModule itself.
        network: the network.
        panel: its images.
        first: images and labels of the first batch, and under which keys they are.
        class_names: names of the classes, if known.
        class_source: where they are from, in words.
        colors: how images become pictures.
        options: how batches and outputs are read.
        multilabel: whether each class has a probability of its own.
    """

    network_name: str
    network: nn.Module
    panel: Panel
    first: Picked
    class_names: list[str] | None
    class_source: str
    colors: Colors
    options: WatchOptions
    multilabel: bool

    def batches(self, trainer: L.Trainer, n: int | None = None) -> Iterator[tuple[list[int], Picked]]:
        """Yield indices and images of each batch on the device: this process's share of the first `n` of all."""
        start, keys = 0, (self.options.image_key, self.options.label_key)
        n = n if n is None or self.panel.alone else -(-n // trainer.world_size)
        for batch in self.panel.batches:
            if n is not None and start >= n:
                return
            picked = pick(move_data_to_device(batch, trainer.lightning_module.device), *keys)
            take = len(picked.images) if n is None else min(n - start, len(picked.images))
            ids = self.panel.ids[start : start + take]
            start += len(picked.images)
            yield ids, picked if take == len(picked.images) else picked.rows(slice(take))

    def size(self, trainer: L.Trainer) -> int:
        """Return about how many images all processes have."""
        return len(self.panel.ids) * (1 if self.panel.alone else trainer.world_size)


def find_panel(trainer: L.Trainer, options: WatchOptions) -> Panel | None:
    """Return the images of this process; None where they can only be taken from the batches that pass by."""
    rank, world, images, n = trainer.global_rank, trainer.world_size, options.images, options.count
    if callable(images) and not isinstance(images, (Dataset, str)):
        with seeded(options.seed, images, *datasets(trainer)):
            batch = images(trainer)
        return panel_of_batches(trainer, [batch], options, "given by a function")
    given = isinstance(images, (Dataset, DataLoader))
    loader: Any = DataLoader(images, batch_size=32) if isinstance(images, Dataset) else images
    loader = loader if given else loader_of(trainer)
    if given and not indexed(loader):
        with seeded(options.seed, loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn):
            batches = list(islice(loader, -(-n // (loader.batch_size or 1))))
        return panel_of_batches(trainer, batches, options, "the first given")
    if loader is None or not indexed(loader):
        return None
    if isinstance(images, (str, Dataset, DataLoader)):
        return choose_panel(loader, options, rank, world, "own-" if given else "")
    wrong = [i for i in images if not 0 <= i < len(loader.dataset)]
    if wrong:
        raise ValueError(
            f"expected images as indices below {len(loader.dataset)}, the size of the data set, got {wrong}."
        )
    return read_panel(loader, list(images)[rank::world], "given indices", options.seed)


def panel_of_batches(trainer: L.Trainer, batches: list[Any], options: WatchOptions, source: str) -> Panel:
    """Return batches of the user's own as a panel, which the first process explains."""
    if trainer.global_rank > 0:
        return Panel([], [], "of the first process")
    ready = [after_batch_hooks(trainer, batch, options.seed) for batch in batches]
    size = sum(len(pick(batch, options.image_key, options.label_key).images) for batch in ready)
    return Panel(list(range(size)), ready, source, ready=True, alone=True, prefix="own-")


def loader_of(trainer: L.Trainer) -> DataLoader | None:
    """Return the first loader of the stage that runs; without a validation that of the training."""
    if trainer.state.fn == "test":
        return first_loader(trainer.test_dataloaders)
    if trainer.state.fn == "fit" and not trainer.enable_validation:
        return first_loader(trainer.train_dataloader)
    return first_loader(trainer.val_dataloaders)


def datasets(trainer: L.Trainer) -> list[Any]:
    """Return the data sets of the loaders that the trainer holds now."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
    return [leaf.dataset for leaf in _compat.tree_leaves(loaders) if isinstance(leaf, DataLoader)]


def build_context(trainer: L.Trainer, pl_module: L.LightningModule, panel: Panel, options: WatchOptions) -> RunContext:
    """Find the network, the class names and the colors, with the first batch of the panel."""
    if not panel.batches:
        raise ValueError("expected at least one image to watch, got none; is the validation set empty?")
    if not panel.ready:
        batches = [after_batch_hooks(trainer, batch, options.seed) for batch in panel.batches]
        panel = replace(panel, batches=batches, ready=True)
    first_batch = move_data_to_device(panel.batches[0], pl_module.device)
    first = pick(first_batch, options.image_key, options.label_key)
    name, network = find_network(pl_module, first.images, options.network, options.output)
    options = replace(options, output=output_for(network, first.images, options.output))
    data = getattr(trainer, "datamodule", None)
    dataset = panel.dataset if panel.dataset is not None else getattr(loader_of(trainer), "dataset", None)
    class_names, source = find_class_names(options.class_names, data, dataset, pl_module)
    colors = find_colors(first.images, options.mean, options.std, data, dataset, pl_module)
    declared = getattr(data, "multilabel", getattr(pl_module, "multilabel", None))
    several = first.target is not None and first.target.ndim == 2
    return RunContext(
        network_name=name,
        network=network,
        panel=panel,
        first=first,
        class_names=class_names,
        class_source=source,
        colors=colors,
        options=options,
        multilabel=several if declared is None else bool(declared),
    )


def after_batch_hooks(trainer: L.Trainer, batch: Any, seed: int) -> Any:
    """Return a batch after the project's own hooks, on the CPU; the hooks treat it as one of a validation."""
    pl_module = trainer.lightning_module
    data = getattr(trainer, "datamodule", None)
    with evaluating(trainer), prepare_model(pl_module) as prepared, seeded(seed, pl_module, data), torch.no_grad():
        prepared.state.runs = False
        batch = trainer.precision_plugin.convert_input(batch)
        batch = _compat.before_batch_transfer(pl_module, batch)
        return move_data_to_device(trainer.strategy.batch_to_device(batch, dataloader_idx=0), torch.device("cpu"))


@contextmanager
def evaluating(trainer: L.Trainer) -> Iterator[None]:
    """Report `trainer.training` as false inside the block."""
    stage = trainer.state.stage
    if stage == RunningStage.TRAINING:
        trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage
