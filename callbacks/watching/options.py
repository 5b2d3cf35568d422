"""Options that all watching callbacks share, and how a callback reads them from its arguments."""

import difflib
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey, check_keys
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.choose import task_named
from interpretable_training.tasks.network import Chosen, check_network

Images = str | Sequence[int] | DataLoader | Dataset | Callable[[L.Trainer], Any]
Stages = Sequence[Literal["fit", "validate", "test"]]
OnError = Literal["warn", "raise"]


@dataclass(frozen=True)
class WatchOptions:
    """Common options of a callback; `Watcher` describes them."""

    max_images: int
    images: Images
    every_n_epochs: int | None
    every_n_steps: int | None
    stages: Stages
    on_error: OnError
    budget: Budget | float | None
    network: Chosen
    output: Output
    image_key: Key
    label_key: LabelKey
    class_names: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int
    task: str | Task = "auto"
    channels: Sequence[int] | None = None

    def __post_init__(self) -> None:
        task_named(self.task)
        check_keys(self.image_key, self.label_key)
        check_network(self.network)
        if isinstance(self.images, str):
            one_of("images", self.images, "panel")
        for stage in self.stages:
            one_of("stages", stage, "fit", "validate", "test")
        one_of("on_error", self.on_error, "warn", "raise")
        for name in ("max_images", "every_n_epochs", "every_n_steps"):
            value = self.count if name == "max_images" else getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}.")

    @functools.cached_property
    def count(self) -> int:
        """Return the number of images: `max_images`, or all where they are given by index."""
        given = isinstance(self.images, Sequence) and not isinstance(self.images, str)
        return len(self.images) if given else self.max_images  # type: ignore[arg-type]

    @functools.cached_property
    def panel_key(self) -> Hashable:
        """Return a key that is equal for callbacks that explain the same images of the same network."""
        names = ["images", "network", "output", "image_key", "label_key", "class_names", "mean", "std", "seed"]
        names += ["task", "channels"]
        return (self.count, *(hashable(getattr(self, name)) for name in names))


def hashable(value: Any) -> Hashable:
    """Return the value itself, a sequence as a tuple, and the identity of a value that cannot be hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(map(hashable, value))
    return value if value is None or isinstance(value, (str, int, float)) else id(value)


def common_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the common options among the arguments of a callback."""
    return {field.name: arguments[field.name] for field in fields(WatchOptions) if field.name in arguments}


def suggest_options(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate an `__init__` so that an unknown keyword raises a TypeError that names the closest options."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        for name in options.keys() - set(names):
            close = difflib.get_close_matches(name, names, cutoff=0.4)
            hint = f"; closest: {close}." if close else f"; it has {names}."
            raise TypeError(f"expected an option of {type(self).__name__}, got {name!r}{hint}")
        init(self, *args, **options)

    return checked
