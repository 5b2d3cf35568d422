"""What is watched in one stage: the network, the images, and how to tell of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution.observe import Output, same_generators
from interpretable_training.batch import Key, Picked, pick
from interpretable_training.callbacks.panel import Panel, choose_panel, first_loader, indexed, read_panel
from interpretable_training.callbacks.subject import find_class_names, find_network
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


@dataclass(frozen=True)
class Scene:
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
        """Indices and images of each batch on the device, those of the first `n` images of this process."""
        start = 0
        for batch in self.panel.batches:
            if n is not None and start >= n:
                return
            picked = pick(move_data_to_device(batch, trainer.lightning_module.device), *self.keys)
            take = len(picked.images) if n is None else min(n - start, len(picked.images))
            ids = self.panel.ids[start : start + take]
            start += len(picked.images)
            yield ids, picked if take == len(picked.images) else pick_rows(picked, take)

    @property
    def keys(self) -> tuple[Key, Key]:
        return self.options.image_key, self.options.label_key


def pick_rows(picked: Picked, n: int) -> Picked:
    """The first rows of a batch."""
    total = len(picked.images)
    rest = {k: v[:n] if isinstance(v, (Tensor, list)) and len(v) == total else v for k, v in picked.rest.items()}
    target = None if picked.target is None else picked.target[:n]
    return Picked(picked.images[:n], target, picked.image_key, picked.label_key, rest)


def find_panel(trainer: L.Trainer, images: Images, n: int, options: Options) -> Panel | None:
    """The images of this process; None where they can only be taken from the batches that pass by."""
    rank, world = trainer.global_rank, trainer.world_size
    if callable(images) and not isinstance(images, (Dataset, str)):
        batch = images(trainer)
        size = len(pick(batch, options.image_key, options.label_key).images)
        return Panel(list(range(size)), [batch], "given by a function") if rank == 0 else Panel([], [], "of rank 0")
    if isinstance(images, (Dataset, DataLoader)):
        loader: Any = images if isinstance(images, DataLoader) else DataLoader(images, batch_size=32)
    else:
        loader = loader_of(trainer)
    if loader is None or not indexed(loader):
        return None
    if isinstance(images, str) or loader is images or isinstance(images, Dataset):
        return choose_panel(loader, n, options.seed, rank, world, options.image_key, options.label_key)
    assert not callable(images)
    wrong = [i for i in images if not 0 <= i < len(loader.dataset)]
    if wrong:
        raise ValueError(
            f"expected images as indices below {len(loader.dataset)}, the size of the data set, got {wrong}."
        )
    return read_panel(loader, list(images)[rank::world], "given indices")


def loader_of(trainer: L.Trainer) -> DataLoader | None:
    """Of the stage that runs: the first validation or test loader; that of training where there is no validation."""
    if trainer.state.fn == "test":
        return first_loader(trainer.test_dataloaders)
    return first_loader(trainer.val_dataloaders) or first_loader(trainer.train_dataloader)


def build_scene(trainer: L.Trainer, pl_module: L.LightningModule, panel: Panel, options: Options) -> Scene:
    """Find the network, the class names and the colors by looking at the first batch."""
    if not panel.batches:
        raise ValueError("expected at least one image to watch, got none; is the validation set empty?")
    if not panel.ready:
        panel = Panel(
            panel.ids, [prepared(trainer, batch, options.seed) for batch in panel.batches], panel.source, True
        )
    first_batch = move_data_to_device(panel.batches[0], pl_module.device)
    first = pick(first_batch, options.image_key, options.label_key)
    name, network = find_network(pl_module, first.images, options.network, options.output)
    data, loader = getattr(trainer, "datamodule", None), loader_of(trainer)
    dataset = getattr(loader, "dataset", None)
    class_names, source = find_class_names(options.class_names, data, dataset, pl_module)
    colors = find_colors(first.images, options.mean, options.std, data, dataset, pl_module)
    told = getattr(data, "multilabel", getattr(pl_module, "multilabel", None))
    several = first.target is not None and first.target.ndim == 2
    return Scene(
        name, network, panel, first, class_names, source, colors, options, several if told is None else bool(told)
    )


def prepared(trainer: L.Trainer, batch: Any, seed: int) -> Any:
    """A batch of the loader after the project's own hooks, on the CPU; they treat it as one of validation."""
    pl_module = trainer.lightning_module
    with evaluating(trainer), same_generators(), torch.no_grad():
        torch.manual_seed(seed)
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


class Collector:
    """Takes the first images of the validation batches that pass by, where none can be read by index."""

    def __init__(self, n: int, options: Options) -> None:
        self.n, self.options, self.seen = n, options, 0
        self.batches: list[Any] = []

    def take(self, batch: Any) -> None:
        """Keep a copy of a batch on the CPU, as long as there are too few."""
        if self.seen < self.n:
            images = pick(batch, self.options.image_key, self.options.label_key).images
            self.batches.append(apply_to_collection(batch, Tensor, lambda t: t.detach().cpu().clone()))
            self.seen += len(images)

    def panel(self) -> Panel:
        """What was taken."""
        return Panel(list(range(self.seen)), self.batches, "the first of the stream", ready=True)
