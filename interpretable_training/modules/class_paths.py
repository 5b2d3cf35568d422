"""Class paths that files name: what they lead to is looked at before anything is called.

A configuration is what a user runs, so it may name any class, and a function that declares the class it returns. A
checkpoint comes from anywhere, so it may name networks, optimizers and the like, and nothing is imported for it but
what this package is built on.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.machinery import PathFinder
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.regularization import GuidedGradientRegularizer

# What the hyper-parameters of a module consist of, beside plain values. Metrics are modules, too.
KINDS = (nn.Module, Optimizer, LRScheduler, ReduceLROnPlateau, Attribution, GuidedGradientRegularizer)
CALLED = ("optimizer", "scheduler")  # a function that is named here would be called at once, with what the file says
KNOWN = ("torch", "torchvision", "timm", "torchmetrics", "lightning", "interpretable_training")
BUILDERS = ("torchvision.models", "timm.models")  # of functions that return networks
DOWNLOADS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # timm reads further files for these
HARMLESS = ("datetime",)  # of the standard library


def check_hyper_parameters(values: Any, own: Sequence[Any] = ()) -> None:
    """Refuse hyper-parameters of a checkpoint that lead to anything but plain values and what `KINDS` names.

    Args:
        values: The hyper-parameters.
        own: Class paths with their arguments that the command line itself names.
    """
    for key, value, parent in walk(values):
        if isinstance(value, str) and is_mapping(value):
            refuse(key, "a plain value, no text of YAML or JSON", value)
        if key in DOWNLOADS and "class_path" not in parent:
            refuse(key, "no further file or address that is to be read", value)
        if key in ("class_path", "_class_path"):
            if parent in own or (isinstance(value, str) and value.isidentifier()):
                continue  # jsonargparse looks up short names among the subclasses of what it expects
            found = loaded(value)
            if not allowed_in_checkpoint(found):
                refuse(value, "the class path of an imported network, loss, optimizer, scheduler or metric", value)
        elif isinstance(value, str) and key != "_instantiator" and "." in value:
            found = loaded(value)
            if (found is not None and is_unsafe(found)) or (found is None and is_importable(value)):
                refuse(key, "a plain value or an imported class", value)
        refuse_function(key, value)


def is_mapping(text: str) -> bool:
    """Whether jsonargparse would read a text as a tree with keys, and call the class paths in it."""
    try:  # events, as they do not follow aliases
        return any(isinstance(event, yaml.MappingStartEvent) for event in yaml.parse(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return text.lstrip().startswith(("{", "["))


def refuse_function(key: str, value: Any) -> None:
    """Refuse a function where it would be called at once with the values of the file."""
    if key in CALLED and isinstance(value, (dict, Namespace)):
        path = value.get("class_path")
        found = loaded(path) if isinstance(path, str) else None
        if found is not None and not isinstance(found, type):
            refuse(key, f"the class of an {key}" if key == "optimizer" else f"the class of a {key}", path)


def check_configuration(config: Any) -> None:
    """Refuse a parsed configuration that leads to a function which does not say what it builds, or out of Python."""
    for key, value, _ in walk(config):
        refuse_function(key, value)
        if key == "class_path" and isinstance(value, str) and "." in value:
            found = loaded(value)
            if found is None or is_unsafe(found):
                refuse(value, "a class, or a function that declares which class it returns", value)
        elif callable(value) and not isinstance(value, (type, nn.Module)) and is_standard(value):
            refuse(key, "a function of a package for this purpose", getattr(value, "__qualname__", value))


def walk(value: Any, key: str = "", parent: Any = ()) -> Iterator[tuple[str, Any, Any]]:
    """All that is in a tree, with its name and what it stands in."""
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
    """The object at a dotted path among the imported modules, or None; only `KNOWN` packages are imported for it."""
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        return None
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if name not in sys.modules and parts[0] in KNOWN and is_importable(f"{name}.x"):
            importlib.import_module(name)
        if name in sys.modules:
            found: Any = sys.modules[name]
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found
    return None


def is_importable(path: str) -> bool:
    """Whether a dotted path leads into a file of Python, which is not read."""
    places, spec = None, None
    for part in path.split(".")[:-1]:
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return path.partition(".")[0] in sys.builtin_module_names
        if spec.origin is not None and spec.submodule_search_locations is None:
            return True
        places = spec.submodule_search_locations
    return spec is not None and spec.origin is not None


def allowed_in_checkpoint(found: Any) -> bool:
    """Whether a checkpoint may name it."""
    if isinstance(found, type):
        return issubclass(found, KINDS)
    return str(getattr(found, "__module__", "")).startswith(BUILDERS) and issubclass(returned(found), KINDS)


def is_unsafe(found: Any) -> bool:
    """Whether it is of the standard library, or a function that does not declare a class of ours or of torch."""
    if isinstance(found, type):
        return is_standard(found)
    return callable(found) and (is_standard(found) or is_standard(returned(found)))


def is_standard(found: Any) -> bool:
    """Whether an object was defined in the standard library, or calls what was."""
    while isinstance(found, partial):
        found = found.func
    module = getattr(found, "__module__", None) or type(found).__module__
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names and root not in HARMLESS


def returned(function: Any) -> type:
    """The class that a function declares to return; `object` if it does not say."""
    try:
        found = typing.get_type_hints(function).get("return") if inspect.isfunction(function) else None
    except (NameError, TypeError):
        found = None
    return found if isinstance(found, type) else object


def refuse(place: str, expected: str, value: Any) -> None:
    """Say what a file may not name."""
    raise ValueError(
        f"expected {expected} at {place!r}, got {value!r}. Files name classes, and functions only where "
        "they declare which; a checkpoint names what is imported by then: import it first, or pass the object itself "
        "to load_from_checkpoint."
    )
