"""Find the global variables and class attributes that functions name, in code outside of installed packages."""

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

OURS = __name__.partition(".")[0]
FOLDERS = ("site-packages", "dist-packages")


@functools.lru_cache(4096)
def installed(name: str) -> bool:
    """Whether a module is part of an installed package or the standard library: its globals are not walked."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "lightning", "numpy", OURS):
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return any(folder in file for folder in FOLDERS)


@functools.lru_cache(4096)
def _names_of(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code may look up among the globals, with those of functions inside it."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names_of(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def globals_of(function: types.FunctionType) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield globals, name and value of each global variable that a function names."""
    if not installed(function.__module__ or ""):
        variables = function.__globals__
        yield from ((variables, name, variables[name]) for name in _names_of(function.__code__) if name in variables)


def user_classes(cls: type) -> Iterator[type]:
    """Yield a class and its bases, without those of installed packages."""
    return (base for base in cls.__mro__ if not installed(base.__module__))


def class_attributes(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each class attribute, without those with two leading underscores."""
    return ((name, value) for name, value in list(vars(cls).items()) if not name.startswith("__"))


def functions_in(value: Any) -> tuple[Any, ...]:
    """Return the functions behind a descriptor in a class."""
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget, value.fset)
    return (value.func,) if isinstance(value, functools.cached_property) else ()


def slots_of(cls: type) -> Iterator[str]:
    """Yield the attributes that a class and its bases declare in `__slots__`."""
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


@functools.lru_cache(4096)
def sharded(cls: Any) -> bool:
    """Whether a class of modules is FSDP of torch, which spreads parameters over processes."""
    return issubclass(cls, nn.Module) and any(
        base.__module__.startswith("torch.distributed.fsdp") for base in cls.__mro__
    )
