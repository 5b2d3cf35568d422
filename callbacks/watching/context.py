"""What is watched in one stage: the network, the images, and how to tell of them."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution.core.prepared_model import Output, prepare_model
from interpretable_training.batches.read import Key, Picked, pick
from interpretable_training.callbacks.watching.discovery import find_class_names, find_network, output_for
from interpretable_training.callbacks.watching.image_panel import (
    Panel,
    choose_panel,
    first_loader,
    indexed,
    read_panel,
    seeded,
)
from interpretable_training.visual.colors import Colors, find_colors

Images = str | Sequence[int] | DataLoader | Dataset | Callable[[L.Trainer], Any]


@dataclass(frozen=True)
class Options:
    """How a project's batches and outputs are read; what is not said is found."""

    network: str | None = None
    output: Output = None
    image_key: Key = None
    label_key: Key = None
    class_names: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    seed: int = 0


def options_of(owner: type, told: dict[str, Any]) -> Options:
    """The options among the keywords that a callback was built with; an error names those that are close."""
    known = {field.name for field in fields(Options)}
    for name in set(told) - known:
        others = {key for cls in owner.__mro__[:-1] for key in inspect.signature(cls).parameters}
        close = difflib.get_close_matches(name, sorted((others | known) - {"self", "watch", "reading"}), cutoff=0.4)
        hint = f"; closest: {close}." if close else "."
        raise TypeError(f"expected an option of {owner.__name__}, got {name!r}{hint}")
    return Options(**told)


@dataclass(frozen=True)
class RunContext:
    """What is watched, ready to be explained."""

    network_name: str
    network: nn.Module
    panel: Panel
    first: Picked  # what was found in the first batch
    class_names: list[str] | None
    class_source: str
    colors: Colors
    options: Options
    multilabel: bool

    def batches(self, trainer: L.Trainer, n: int | None = None) -> Iterator[tuple[list[int], Picked]]:
        """Indices and images of each batch on the device; this process's share of the first `n` of all processes."""
        start = 0
        n = n if n is None or self.panel.alone else -(-n // trainer.world_size)
        for batch in self.panel.batches:
            if n is not None and start >= n:
                return
            picked = pick(move_data_to_device(batch, trainer.lightning_module.device), *self.keys)
            take = len(picked.images) if n is None else min(n - start, len(picked.images))
            ids = self.panel.ids[start : start + take]
            start += len(picked.images)
            yield ids, picked if take == len(picked.images) else picked.rows(slice(take))

    def size(self, trainer: L.Trainer) -> int:
        """About how many images all processes have."""
        return len(self.panel.ids) * (1 if self.panel.alone else trainer.world_size)

    @property
    def keys(self) -> tuple[Key, Key]:
        return self.options.image_key, self.options.label_key


def find_panel(trainer: L.Trainer, images: Images, n: int, options: Options) -> Panel | None:
    """The images of this process; None where they can only be taken from the batches that pass by."""
    rank, world = trainer.global_rank, trainer.world_size
    if callable(images) and not isinstance(images, (Dataset, str)):
        with seeded(options.seed, images, *datasets(trainer)):
            batch = images(trainer)
        return given(trainer, [batch], options, "given by a function")
    own = isinstance(images, (Dataset, DataLoader))
    loader: Any = DataLoader(images, batch_size=32) if isinstance(images, Dataset) else images
    loader = loader if own else loader_of(trainer)
    if own and not indexed(loader):
        with seeded(options.seed, loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn):
            batches = list(islice(loader, -(-n // (loader.batch_size or 1))))
        return given(trainer, batches, options, "the first given")
    if loader is None or not indexed(loader):
        return None
    if isinstance(images, (str, Dataset, DataLoader)):
        return choose_panel(loader, n, options, rank, world, "own-" if own else "")
    wrong = [i for i in images if not 0 <= i < len(loader.dataset)]
    if wrong:
        raise ValueError(
            f"expected images as indices below {len(loader.dataset)}, the size of the data set, got {wrong}."
        )
    return read_panel(loader, list(images)[rank::world], "given indices", options.seed)


def given(trainer: L.Trainer, batches: list[Any], options: Options, source: str) -> Panel:
    """Batches of the user's own, which the first process explains."""
    if trainer.global_rank > 0:
        return Panel([], [], "of the first process")
    ready = [after_batch_hooks(trainer, batch, options.seed) for batch in batches]
    size = sum(len(pick(batch, options.image_key, options.label_key).images) for batch in ready)
    return Panel(list(range(size)), ready, source, ready=True, alone=True, prefix="own-")


def loader_of(trainer: L.Trainer) -> DataLoader | None:
    """Of the stage that runs: the first validation or test loader; that of training where there is no validation."""
    if trainer.state.fn == "test":
        return first_loader(trainer.test_dataloaders)
    if trainer.state.fn == "fit" and not trainer.enable_validation:
        return first_loader(trainer.train_dataloader)
    return first_loader(trainer.val_dataloaders)


def datasets(trainer: L.Trainer) -> list[Any]:
    """Data sets of the loaders that the trainer holds at this moment."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
    return [leaf.dataset for leaf in tree_leaves(loaders) if isinstance(leaf, DataLoader)]


def build_context(trainer: L.Trainer, pl_module: L.LightningModule, panel: Panel, options: Options) -> RunContext:
    """Find the network, the class names and the colors by looking at the first batch."""
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
    told = getattr(data, "multilabel", getattr(pl_module, "multilabel", None))
    several = first.target is not None and first.target.ndim == 2
    return RunContext(
        name, network, panel, first, class_names, source, colors, options, several if told is None else bool(told)
    )


def after_batch_hooks(trainer: L.Trainer, batch: Any, seed: int) -> Any:
    """A batch of the loader after the project's own hooks, on the CPU; they treat it as one of validation."""
    pl_module = trainer.lightning_module
    data = getattr(trainer, "datamodule", None)
    with evaluating(trainer), prepare_model(pl_module) as prepared, seeded(seed, pl_module, data), torch.no_grad():
        prepared.state.runs = False
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return move_data_to_device(trainer.strategy.batch_to_device(batch, dataloader_idx=0), torch.device("cpu"))


@contextmanager
def evaluating(trainer: L.Trainer) -> Iterator[None]:
    """Whoever asks the trainer whether it trains is told that it does not."""
    stage = trainer.state.stage
    if stage == RunningStage.TRAINING:
        trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage
