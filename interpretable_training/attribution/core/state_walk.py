"""Choose how `same_state` walks an object, by its class."""

import functools
import io
import random
import sys
import types
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = frozenset([type(None), bool, int, float, complex, str, bytes, type(...), range, slice, property])
ATOMS |= {torch.dtype, torch.device, torch.Size, types.ModuleType, types.MappingProxyType, types.CodeType}
# Objects of these packages are part of the training loop or of the machine.
AROUND = frozenset(["lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torch", "numpy"])
AROUND |= {"wandb", "mlflow", "tensorboard", "tensorflow", "jsonargparse"}
# Objects of these modules of them may hold state of the user.
HELD = ("torch.utils.data.dataset", "torch.utils.data.sampler", "lightning.pytorch.core", "pytorch_lightning.core")
STANDARD = (types.SimpleNamespace, UserDict, UserList)


@functools.lru_cache(4096)
def walker(cls: Any) -> Callable[[Any, Any, Any], None]:
    """Return the method of `Snapshot` that walks objects of a class."""
    from .state import Snapshot

    numpy = sys.modules.get("numpy")
    if issubclass(cls, nn.Module):
        return Snapshot.module
    if issubclass(cls, Tensor):
        return Snapshot.tensor
    if issubclass(cls, dict):
        return Snapshot.mapping
    if issubclass(cls, (list, tuple, set, frozenset, deque)):
        return Snapshot.sequence
    if issubclass(cls, random.SystemRandom):  # has no state
        return Snapshot.nothing
    if issubclass(cls, (torch.Generator, random.Random)) or (
        numpy and issubclass(cls, (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator))
    ):
        return Snapshot.generator
    if numpy and issubclass(cls, numpy.ndarray):
        return Snapshot.array
    if cls is types.FunctionType:
        return Snapshot.function
    if cls in (types.MethodType, types.BuiltinFunctionType, functools.partial):
        return Snapshot.bound
    if issubclass(cls, type):
        return Snapshot.of_class
    if issubclass(cls, bytearray):
        return Snapshot.raw
    if issubclass(cls, io.IOBase):
        return Snapshot.file
    if issubclass(cls, Iterator) and cls.__module__ in ("builtins", "itertools"):
        return Snapshot.iterator
    return Snapshot.nothing if around(cls) or issubclass(cls, Enum) else Snapshot.attributes


def around(cls: type) -> bool:
    """Whether objects of a class are part of the training loop or of the machine, or have no attributes."""
    if issubclass(cls, STANDARD):
        return False
    for base in cls.__mro__[:-1]:
        module = base.__module__
        root = module.partition(".")[0]
        if module.startswith(HELD) or (root == "abc" or root == "typing"):
            continue
        if root in AROUND or root in sys.stdlib_module_names:
            return True
    return False
