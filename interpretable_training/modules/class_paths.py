"""Checks of the class paths in files, before anything is called.

Users run their configurations, so these may name any class, and functions that declare the class they return.
Checkpoints come from anywhere, so they may name networks, losses, optimizers, schedulers and metrics only, and no
module is imported for them except those of the packages in `KNOWN`.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.machinery import PathFinder
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.regularization import GuidanceLoss, GuidedGradientRegularizer

from ._compat import INSTANTIATOR

# Hyper-parameters of a module are plain values and these. Metrics are modules, too.
LOSSES = (GuidedGradientRegularizer, GuidanceLoss)
KINDS = (nn.Module, Optimizer, LRScheduler, ReduceLROnPlateau, Attribution, *LOSSES)
CALLED = (
    "optimizer",
    "scheduler",
)  # jsonargparse calls a function that is named here at once, with arguments of the file
KNOWN = ("torch", "torchvision", "timm", "torchmetrics", "lightning", "interpretable_training")
BUILDERS = ("torchvision.models", "timm.models")  # of functions that return networks
DOWNLOADS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # timm reads further files for these
HARMLESS = ("datetime",)  # of the standard library
IN_CHECKPOINT = (
    "a checkpoint may name classes of modules that are imported already. If you trust the module, import it first "
    "(explain: --import MODULE, other commands: name the class in the configuration, too), or pass the object itself "
    "to load_from_checkpoint."
)
IN_CONFIGURATION = (
    "name a class, or a function that declares the class it returns, of a package outside of Python itself."
)


def check_hyper_parameters(values: Any, configured: Sequence[Any] = ()) -> None:
    """Raise for hyper-parameters of a checkpoint that lead to anything but plain values and classes of `KINDS`.

    Args:
        values: The hyper-parameters.
        configured: Class paths with their arguments that the configuration of the command names, too.
    """
    for key, value, parent in walk(values):
        if isinstance(value, str) and is_mapping(value):
            _raise(key, "a plain value, no text of YAML or JSON", value, IN_CHECKPOINT)
        if key in DOWNLOADS and "class_path" not in parent:
            _raise(key, "no further file or address to read", value, IN_CHECKPOINT)
        if key in ("class_path", "_class_path"):
            if parent in configured or (isinstance(value, str) and value.isidentifier()):
                continue  # jsonargparse looks up short names among the subclasses of what it expects
            target = loaded(value)
            if not allowed_in_checkpoint(target):
                kinds = "network, loss, optimizer, scheduler or metric"
                _raise(key, f"the class path of an imported {kinds}", value, IN_CHECKPOINT)
        elif isinstance(value, str) and key != INSTANTIATOR and "." in value:
            target = loaded(value)
            if (target is not None and is_unsafe(target)) or (target is None and is_importable(value)):
                _raise(key, "a plain value or an imported class", value, IN_CHECKPOINT)
        _refuse_function(key, value, IN_CHECKPOINT)


def is_mapping(text: str) -> bool:
    """Whether jsonargparse would read a text as a mapping, and call the class paths in it."""
    try:  # events, as they do not follow aliases
        return any(isinstance(event, yaml.MappingStartEvent) for event in yaml.parse(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return text.lstrip().startswith(("{", "["))


def _refuse_function(key: str, value: Any, advice: str) -> None:
    """Raise for a function in a place where jsonargparse calls it at once with the arguments of the file."""
    if key in CALLED and isinstance(value, (dict, Namespace)):
        path = value.get("class_path")
        target = loaded(path) if isinstance(path, str) else None
        if target is not None and not isinstance(target, type):
            _raise(key, f"the class of an {key}" if key == "optimizer" else f"the class of a {key}", path, advice)


def check_configuration(config: Any) -> None:
    """Raise for a parsed configuration that names the standard library, or functions that declare no class."""
    for key, value, _ in walk(config):
        _refuse_function(key, value, IN_CONFIGURATION)
        if key == "class_path" and isinstance(value, str) and "." in value:
            target = loaded(value)
            if target is None or is_unsafe(target):
                _raise(key, "a class, or a function that declares which class it returns", value, IN_CONFIGURATION)
        elif callable(value) and not isinstance(value, (type, nn.Module)) and is_standard(value):
            _raise(
                key, "a function of no part of Python itself", getattr(value, "__qualname__", value), IN_CONFIGURATION
            )


def walk(value: Any, key: str = "", parent: Any = ()) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and parent of everything in a tree."""
    yield key, value, parent
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from walk(inner, str(name), value)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from walk(inner, key, value)


def loaded(path: Any) -> Any:
    """Return the object at a dotted path among the imported modules, or None; import those of `KNOWN` packages."""
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        return None
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if name not in sys.modules and parts[0] in KNOWN and is_importable(f"{name}.x"):
            importlib.import_module(name)
        if name in sys.modules:
            target: Any = sys.modules[name]
            for part in parts[end:]:
                target = getattr(target, part, None)
            return target
    return None


def is_importable(path: str) -> bool:
    """Whether a dotted path leads into a Python file, which is not executed."""
    places, spec = None, None
    for part in path.split(".")[:-1]:
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return path.partition(".")[0] in sys.builtin_module_names
        if spec.origin is not None and spec.submodule_search_locations is None:
            return True
        places = spec.submodule_search_locations
    return spec is not None and spec.origin is not None


def allowed_in_checkpoint(target: Any) -> bool:
    """Whether a checkpoint may name it."""
    if isinstance(target, type):
        return issubclass(target, KINDS)
    return str(getattr(target, "__module__", "")).startswith(BUILDERS) and issubclass(returned(target), KINDS)


def is_unsafe(target: Any) -> bool:
    """Whether it is of the standard library, or a function that declares no class outside of it."""
    if isinstance(target, type):
        return is_standard(target)
    return callable(target) and (is_standard(target) or is_standard(returned(target)))


def is_standard(target: Any) -> bool:
    """Whether an object was defined in the standard library, or is a partial of one that was."""
    while isinstance(target, partial):
        target = target.func
    module = getattr(target, "__module__", None) or type(target).__module__
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names and root not in HARMLESS


def returned(function: Any) -> type:
    """Return the class that a function declares to return; `object` if it declares none."""
    try:
        target = typing.get_type_hints(function).get("return") if inspect.isfunction(function) else None
    except (NameError, TypeError):
        target = None
    return target if isinstance(target, type) else object


def _raise(key: str, expected: str, value: Any, advice: str) -> NoReturn:
    """Raise for a value that a file may not hold at a key."""
    raise ValueError(f"expected {expected} at {key!r}, got {value!r}; {advice}")
