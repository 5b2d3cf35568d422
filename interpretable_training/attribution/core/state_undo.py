"""Save and restore single objects: one function per kind of Python object.

Every `put_*` function takes an object and its saved state, and restores it in place. The object keeps its identity, so
that other references to it also have the old state.
"""

import ast
import itertools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._compat import version_of

Put = Callable[[Any, Any], None]
REWINDABLE = (itertools.count, *map(type, (iter([]), iter(()), iter(range(0)))))


def put_dict(held: dict[Any, Any], items: list[tuple[Any, Any]]) -> None:
    """Put back values, keys and their order; write nothing if all are unchanged."""
    now = list(held.items())
    if len(now) == len(items) and all(a is c and b is d for (a, b), (c, d) in zip(now, items)):
        return
    base: Any = OrderedDict if isinstance(held, OrderedDict) else dict  # methods of a subclass may have side effects
    if [key for key, _ in now] != [key for key, _ in items]:
        base.clear(held)
    for key, value in items:
        base.__setitem__(held, key, value)


def put_list(held: list[Any], items: list[Any]) -> None:
    if len(held) != len(items) or any(a is not b for a, b in zip(held, items)):
        list.__setitem__(held, slice(None), items)


def put_deque(held: deque[Any], items: list[Any]) -> None:
    if len(held) != len(items) or any(a is not b for a, b in zip(held, items)):
        held.clear()
        held.extend(items)


def put_set(held: set[Any], items: set[Any]) -> None:
    if not (len(held) == len(items) and all(item in items for item in held)):
        set.clear(held)
        set.update(held, items)


def put_bytes(held: bytearray, values: bytes) -> None:
    held[:] = values


def put_array(held: Any, values: Any) -> None:
    """Put back the values of a NumPy array."""
    if held.shape != values.shape:
        raise ValueError(f"shape {values.shape} became {held.shape}")
    held[...] = values


def put_class(held: nn.Module, cls: type) -> None:
    """Put back the class: lazy modules change theirs in their first forward pass."""
    if type(held) is not cls:
        held.__class__ = cls


def put_attribute(slot: tuple[Any, str], value: Any) -> None:
    """Put back an attribute in `__slots__`."""
    owner, name = slot
    if getattr(owner, name, None) is not value:
        object.__setattr__(owner, name, value)


def put_class_attribute(slot: tuple[type, str], value: Any) -> None:
    """Put back an attribute of a class."""
    owner, name = slot
    if vars(owner).get(name) is not value:
        setattr(owner, name, value)


def put_global(slot: tuple[dict[str, Any], str], value: Any) -> None:
    """Put back a global variable."""
    if slot[0].get(slot[1]) is not value:
        slot[0][slot[1]] = value


def put_cell(cell: Any, value: Any) -> None:
    """Put back a variable of an enclosing function."""
    if cell.cell_contents is not value:
        cell.cell_contents = value


def put_file(file: Any, position: int) -> None:
    """Put back the position in an open file."""
    if not file.closed and file.tell() != position:
        file.seek(position)


class SavedTensor:
    """Memory, geometry and values of a tensor before a pass.

    `memory` is an alias by `.data`: writing to it keeps graphs valid that have no backward pass yet.
    """

    __slots__ = ("cls", "flag", "memory", "place", "values", "version")

    def __init__(self, tensor: Tensor, values: bool) -> None:
        self.cls, self.flag = type(tensor), tensor.requires_grad
        self.version = version_of(tensor)
        lazy = is_lazy(tensor)
        self.memory = None if lazy else tensor.data
        self.place = None if lazy else where(tensor)
        self.values = tensor.detach().clone() if values else None

    def written(self, tensor: Tensor) -> bool:
        """Whether values of the tensor have changed; without a copy, whether its version counter has changed."""
        if version_of(tensor) != self.version or type(tensor) is not self.cls or where(tensor) != self.place:
            return True
        return self.values is not None and not torch.equal(tensor.detach(), self.values)


def where(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return address and geometry of a tensor; None for sparse, lazy and wrapped tensors."""
    if is_lazy(tensor) or tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def put_tensor(tensor: Tensor, saved: SavedTensor) -> None:
    """Put back memory, geometry, values and flag of a tensor; raise an error if its values are lost."""
    if saved.memory is None:  # a lazy parameter, which the pass may have initialized
        if type(tensor) is not saved.cls:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.__class__ = saved.cls
        return
    if where(tensor) != saved.place:
        tensor.data = saved.memory
    if saved.values is not None:
        saved.memory.copy_(saved.values)
    if tensor.is_leaf and tensor.requires_grad != saved.flag:
        tensor.requires_grad_(saved.flag)
    if saved.values is None and version_of(tensor) != saved.version:
        raise ValueError("its values were written in place")


def rewound(iterator: Any) -> Any:
    """Return a copy of an iterator at the same position."""
    if type(iterator) is itertools.count:  # copying one is deprecated
        return itertools.count(*ast.literal_eval(f"({repr(iterator)[6:-1]},)"))
    return copy(iterator)


def saved_generator(generator: Any) -> tuple[Put, Any, Any]:
    """Return the `put_*` function of a random generator of torch, NumPy or Python, the generator, and its state."""
    if isinstance(generator, torch.Generator):
        return _put_set_state, generator, generator.get_state()
    if isinstance(generator, random.Random):
        return _put_python_random, generator, generator.getstate()
    if hasattr(generator, "set_state"):  # legacy generator of NumPy
        return _put_set_state, generator, generator.get_state()
    bits = getattr(generator, "bit_generator", generator)
    return _put_bits, bits, bits.state


def _put_set_state(generator: Any, state: Any) -> None:
    generator.set_state(state)


def _put_python_random(generator: random.Random, state: Any) -> None:
    generator.setstate(state)


def _put_bits(bits: Any, state: Any) -> None:
    bits.state = state


def put_all_but_tensors(held: dict[str, Any], items: list[tuple[str, Any]]) -> None:
    """Put back the attributes of a module except its tensors, which FSDP manages."""
    saved = dict(items)
    for name in [n for n, value in held.items() if n not in saved and not isinstance(value, Tensor)]:
        del held[name]
    for name, value in items:
        if not isinstance(value, Tensor) and held.get(name) is not value:
            held[name] = value


def position(iterator: Any) -> Any:
    """Return the visible position of a generator; None for other iterators."""
    frame = getattr(iterator, "gi_frame", None)
    if not isinstance(iterator, types.GeneratorType):
        return None
    if frame is None:
        return "ended"
    plain = (bool, int, float, str)
    return frame.f_lasti, [(k, v if isinstance(v, plain) else id(v)) for k, v in frame.f_locals.items()]


def dotted(path: Any) -> str:
    """Return a path of attributes and keys as text."""
    names = []
    while isinstance(path, tuple):
        path, key = path
        names.append(str(key))
    return ".".join([*([path] if path else []), *reversed(names)])
