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
from interpretable_training.callbacks.watching.discovery import find_class_names
from interpretable_training.callbacks.watching.image_panel import (
    Panel,
    choose_panel,
    first_loader,
    indexed,
    read_panel,
    seeded,
)
from interpretable_training.callbacks.watching.options import WatchOptions
from interpretable_training.tasks.choose import doubts
from interpretable_training.tasks.network import Reading, find_network
from interpretable_training.visual.colors import Colors, find_colors


@dataclass(frozen=True)
class RunContext:
    """Network, panel, class names and colors of a run.

    Attributes:
        reading: the network, its name in the LightningModule, how it is called, and its task.
        panel: the images that are explained.
        first: images and labels of the first batch, and under which keys they are.
        class_names: names of the classes, if known.
        class_source: where they are from, in words.
        colors: how images become pictures.
        options: how batches and outputs are read.
        facts: lines for the start-up report.
    """

    reading: Reading
    panel: Panel
    first: Picked
    class_names: list[str] | None
    class_source: str
    colors: Colors
    options: WatchOptions
    facts: list[tuple[str, str]]

    @property
    def network_name(self) -> str:
        return self.reading.name

    @property
    def network(self) -> nn.Module:
        return self.reading.network

    @property
    def multilabel(self) -> bool:
        """Whether each class has a probability of its own."""
        return self.reading.task.name == "multilabel"

    def of_module(self, pl_module: L.LightningModule) -> "RunContext":
        """Return the context with the network that the LightningModule has now, which the project may replace."""
        given = self.options.network
        network = given(pl_module) if callable(given) else pl_module.get_submodule(self.network_name)
        if network is self.network:
            return self
        return replace(self, reading=replace(self.reading, network=network))

    def require_together(self, what: str) -> None:
        """Raise an error for callbacks that explain the logits of a classifier only."""
        task = self.reading.task
        if not self.reading.together or task.name not in ("classification", "multilabel"):
            inputs = "" if self.reading.inputs.alone else " with further inputs"
            raise ValueError(f"expected a classifier of images for {what}, got {task.name}{inputs}; leave out {what}.")

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


def loaders_of(trainer: L.Trainer) -> tuple[str, Any]:
    """Return name and loaders of the stage that runs; those of the training without a validation."""
    if trainer.state.fn == "test":
        return "test", trainer.test_dataloaders
    if trainer.state.fn == "fit" and not trainer.enable_validation:
        return "training", trainer.train_dataloader
    return "validation", trainer.val_dataloaders


def loader_of(trainer: L.Trainer) -> DataLoader | None:
    """Return the first loader of the stage that runs."""
    return first_loader(loaders_of(trainer)[1])


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
    data = getattr(trainer, "datamodule", None)
    multilabel = getattr(data, "multilabel", getattr(pl_module, "multilabel", None))
    kinds = options.network, options.output, options.task, multilabel
    reading = find_network(pl_module, replace(first, images=first.images), *kinds)
    dataset = panel.dataset if panel.dataset is not None else getattr(loader_of(trainer), "dataset", None)
    class_names, source = find_class_names(options.class_names, data, dataset, pl_module)
    colors = find_colors(first.images, options.mean, options.std, data, dataset, pl_module)
    colors = colors.showing(options.channels, first.images.shape[1])
    sample = reading.picked(reading.sample)
    facts = [("output", reading.task.describe(sample))]
    facts += [] if reading.inputs.alone else [("inputs", str(reading.inputs))]
    facts += [("check", doubt) for doubt in doubts(reading.task, sample, first.target, class_names)]
    own = not isinstance(options.images, (str, list, tuple))
    facts += [] if own else [("loaders", text) for text in unwatched_loaders(trainer)]
    return RunContext(
        reading=replace(reading, sample=None),
        panel=panel,
        first=first,
        class_names=class_names,
        class_source=source,
        colors=colors,
        options=replace(options, output=reading.output),
        facts=facts,
    )


def unwatched_loaders(trainer: L.Trainer) -> list[str]:
    """Return which of several loaders the images come from, in words."""
    kind, loaders = loaders_of(trainer)
    if not isinstance(loaders, (list, tuple, dict)) or len(loaders) < 2:
        return []
    named = loaders if isinstance(loaders, dict) else dict(enumerate(loaders))
    first = first_loader(loaders)
    watched = next((name for name, part in named.items() if first is not None and first_loader(part) is first), None)
    place = "the first" if watched in (None, next(iter(named))) else f"number {list(named).index(watched) + 1}"
    place = f"{watched!r}, {place}" if isinstance(watched, str) else place
    return [f"images are from {place} of {len(named)} {kind} loaders; pass images= for those of another"]


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
