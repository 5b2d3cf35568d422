"""Restore the Python state of modules, data sets and hooks after a block that runs them.

A forward pass may count, cache, draw from its own generator or update a memory bank; so may reading a data set.
`same_state(*roots)` walks everything that the roots refer to and restores, in place, all changes of the block:
attributes, containers, tensors, NumPy arrays, random generators, iterators that can be copied, positions in files,
closures, default arguments and, for code outside of installed packages, the globals and class attributes it names.

Not walked: objects of the training loop (trainer, optimizers, loggers, callbacks, threads), and objects of extensions
without visible attributes. Changes that cannot be restored are reported as a warning or to the listener of `listen`.
"""

import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset
from torch.utils.weak import WeakIdKeyDictionary

from . import state_undo
from ._compat import buffers_in, parameters_in
from .named_globals import class_attributes, functions_in, globals_of, sharded, slots_of, user_classes
from .state_walk import ATOMS, walker

MANY = 10_000  # entries of a container that are walked; the container itself is always restored
OBJECTS = 200_000  # objects that are walked
BYTES = 2**30  # all copies of tensors and arrays; changes of others are detected by their version counter
SMALL = 2**20  # largest copy in bytes of a tensor or array in data sets, globals and classes
PLAIN = (dict, OrderedDict, list, set)  # containers without attributes
WRITTEN: Any = WeakIdKeyDictionary()  # module -> names of parameters that a pass has written
LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


class StateWarning(UserWarning):
    """Warning: explaining changed the state of objects of the user, and the change could not be put back."""


@contextmanager
def listen(listener: Callable[[str], None]) -> Iterator[None]:
    """Pass reports of changes that could not be put back to `listener` instead of warning."""
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)


@contextmanager
def same_state(*roots: Any) -> Iterator["Snapshot"]:
    """Restore the state of everything that `roots` refer to (modules, data sets, functions) after the block."""
    snapshot = Snapshot()
    for root in roots:
        snapshot.add(root)
    try:
        yield snapshot
    finally:
        names = " and ".join(dict.fromkeys(type(root).__name__ for root in roots))
        for lost in snapshot.put_back():
            text = f"{names} changed {lost}, which could not be put back: explaining changes this training. "
            text += "Check it with verify_observer of interpretable_training.testing."
            listener = LISTENER.get()
            listener(text) if listener else warnings.warn(text, StateWarning, stacklevel=3)


class Snapshot:
    """State of all objects that the roots refer to, saved by `same_state`."""

    def __init__(self) -> None:
        self.saved: list[tuple[state_undo.Put, Any, Any, Any]] = []  # function, object, saved state, path
        self.empty: list[Any] = []
        self.parameters: list[tuple[nn.Module, str, Tensor, state_undo.SavedTensor, Any]] = []
        self.generators: list[Any] = []
        self.iterators: list[tuple[Any, Any, Any]] = []  # iterators that cannot be copied, with their visible state
        self.seen: dict[int, Any] = {}  # keeps the objects alive, so that ids stay unique
        self.classes: set[type] = set()
        self.todo: list[tuple[Any, Any, bool]] = []
        self.left = BYTES
        self.small = self.sharded = False  # whether only small tensors are copied; whether FSDP manages parameters
        self.runs = True  # whether modules run inside, which shows the parameters that forward writes

    def add(self, root: Any) -> None:
        """Save the state of everything that a root refers to."""
        if isinstance(root, nn.Module):
            classes: set[Any] = {type(module) for module in root.modules()}
            self.sharded = self.sharded or any(map(sharded, classes))
        self.small = False
        self.push(root, None)
        while self.todo and len(self.seen) < OBJECTS:
            value, path, self.small = self.todo.pop()
            cls: Any = type(value)
            walker(cls)(self, value, path)
        self.todo.clear()

    def push(self, value: Any, path: Any) -> None:
        """Queue a value to be walked, if it can change and is new."""
        if type(value) not in ATOMS and id(value) not in self.seen:
            self.seen[id(value)] = value
            self.todo.append((value, path, self.small))

    def keep(self, put: state_undo.Put, value: Any, saved: Any, path: Any) -> None:
        """Store a function that restores a value, and its saved state."""
        self.saved.append((put, value, saved, path))

    def put_back(self) -> list[str]:
        """Put back all states; return the names of those that could not be put back."""
        lost = []
        with torch.inference_mode(False), torch.no_grad():
            for module, name, parameter, saved, path in self.parameters:
                if saved.written(parameter):
                    WRITTEN.setdefault(module, set()).add(name)
                elif self.runs:
                    WRITTEN.setdefault(module, set())
                self.keep(state_undo.put_tensor, parameter, saved, path)
            for put, value, saved, path in self.saved:
                try:
                    put(value, saved)
                except Exception as error:  # one failure must not leave the others changed
                    lost.append(f"{state_undo.dotted(path)} ({error})")
        for held in self.empty:
            if held:
                held.clear()
        for iterator, saved, path in self.iterators:
            if saved is None or state_undo.position(iterator) != saved:
                lost.append(f"{state_undo.dotted(path)} (the position of a {type(iterator).__name__})")
        return lost

    def seed(self, seed: int) -> None:
        """Seed all random generators among the walked objects."""
        for generator in self.generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif hasattr(generator, "bit_generator"):
                bits = generator.bit_generator
                bits.state = type(bits)(seed).state
            else:
                generator.seed(seed)

    # One method per kind of object; `state_walk.walker` chooses it.

    def module(self, module: nn.Module, path: Any) -> None:
        self.keep(state_undo.put_class, module, type(module), path)
        if self.sharded:  # FSDP replaces and frees parameters itself
            self.keep(state_undo.put_all_but_tensors, vars(module), list(vars(module).items()), path)
            for key, value in vars(module).items():
                if key != "_parameters" and not isinstance(value, Tensor):
                    self.push(value, (path, key))
        else:
            self.parameters_of(module, path)
            self.entries(vars(module), path)
        for name, buffer in buffers_in(module).items():  # scripted modules store them outside of their attributes
            self.push(buffer, (path, name))
        self.of_class(type(module), path)

    def parameters_of(self, module: nn.Module, path: Any) -> None:
        """Copy all parameters before the first pass, which shows those that forward writes; later copy only those."""
        for name, parameter in parameters_in(module).items():
            if parameter is not None and id(parameter) not in self.seen:
                self.seen[id(parameter)] = parameter
                if _of_inference(parameter):
                    continue
                copied = (module not in WRITTEN or name in WRITTEN[module]) and self.fits(parameter)
                saved = state_undo.SavedTensor(parameter, copied)
                self.parameters.append((module, name, parameter, saved, (path, name)))

    def entries(self, held: dict[Any, Any], path: Any) -> None:
        """Save a dict, or the attributes of an object."""
        if not held:
            self.empty.append(held)
            return
        items = list(held.items())
        for i, (key, value) in enumerate(items[:MANY]):
            kind = type(value)
            if kind in ATOMS or (kind is tuple and all(type(part) in ATOMS for part in value)):
                continue
            if kind in PLAIN and not value:  # the hooks of most modules
                self.empty.append(value)
            elif kind in state_undo.REWINDABLE:
                items[i] = key, state_undo.rewound(value)
            else:
                self.push(value, (path, key))
        self.keep(state_undo.put_dict, held, items, path)

    def mapping(self, held: dict[Any, Any], path: Any) -> None:
        self.entries(held, path)
        if type(held) not in PLAIN:
            self.attributes(held, path)

    def sequence(self, held: Any, path: Any) -> None:
        items = [state_undo.rewound(item) if type(item) in state_undo.REWINDABLE else item for item in held]
        if isinstance(held, list):
            self.keep(state_undo.put_list, held, items, path)
        elif isinstance(held, deque):
            self.keep(state_undo.put_deque, held, items, path)
        elif isinstance(held, set):
            self.keep(state_undo.put_set, held, set(items), path)
        for i, item in enumerate(items[:MANY]):
            self.push(item, (path, i))
        if type(held) not in (*PLAIN, tuple, frozenset, deque):
            self.attributes(held, path)

    def attributes(self, value: Any, path: Any) -> None:
        """Save attributes of an object, with those in `__slots__`, and of its class."""
        self.small = self.small or isinstance(value, Dataset)
        held = getattr(value, "__dict__", None)
        if type(held) is dict:
            self.entries(held, path)
        for name in slots_of(type(value)):
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                inner = getattr(value, name)
                self.keep(state_undo.put_attribute, (value, name), inner, (path, name))
                self.push(inner, (path, name))
        self.of_class(type(value), path)

    def of_class(self, cls: type, path: Any) -> None:
        """Save attributes of a class of the user and of its bases, and the globals that its methods name."""
        self.small = True
        for base in user_classes(cls):
            if base in self.classes:
                continue
            self.classes.add(base)
            for name, value in class_attributes(base):
                for function in functions_in(value):
                    self.push(function, (base.__name__, name))
                if not functions_in(value):
                    self.keep(state_undo.put_class_attribute, (base, name), value, (base.__name__, name))
                    self.push(value, (base.__name__, name))

    def function(self, function: Any, path: Any) -> None:
        self.small = True
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # no value yet
                continue
            self.keep(state_undo.put_cell, cell, value, (path, "closure"))
            self.push(value, (path, "closure"))
        for value in (function.__defaults__, function.__kwdefaults__):
            self.push(value, (path, "default"))
        self.entries(function.__dict__, path)
        for held, name, value in globals_of(function):
            if not isinstance(value, type(torch)):
                self.keep(state_undo.put_global, (held, name), value, name)
                self.push(value, name)

    def bound(self, method: Any, path: Any) -> None:
        """Walk a method or partial, and the objects that it is bound to."""
        for name in ("__self__", "__func__", "func", "args", "keywords"):
            self.push(getattr(method, name, None), path)

    def tensor(self, tensor: Tensor, path: Any) -> None:
        if not _of_inference(tensor):
            self.keep(state_undo.put_tensor, tensor, state_undo.SavedTensor(tensor, self.fits(tensor)), path)
        self.entries(tensor.__dict__, path)

    def array(self, array: Any, path: Any) -> None:
        if array.flags.writeable and self.fits(array):
            self.keep(state_undo.put_array, array, array.copy(), path)

    def generator(self, generator: Any, path: Any) -> None:
        self.generators.append(generator)
        self.keep(*state_undo.saved_generator(generator), path)

    def iterator(self, iterator: Any, path: Any) -> None:
        self.iterators.append((iterator, state_undo.position(iterator), path))

    def file(self, file: Any, path: Any) -> None:
        if not file.closed and file.seekable():
            self.keep(state_undo.put_file, file, file.tell(), path)

    def raw(self, held: bytearray, path: Any) -> None:
        self.keep(state_undo.put_bytes, held, bytes(held), path)

    def nothing(self, value: Any, path: Any) -> None:
        """Skip an object."""

    def fits(self, value: Any) -> bool:
        """Whether a tensor or array is small enough to be copied."""
        if isinstance(value, Tensor) and (is_lazy(value) or value.is_meta):
            return False
        size = value.nbytes if not isinstance(value, Tensor) or value.layout == torch.strided else 0
        if size > (min(SMALL, self.left) if self.small else self.left):
            return False
        self.left -= size
        return True


def _of_inference(tensor: Tensor) -> bool:
    """Whether a tensor was made in inference mode, outside of which nothing can write it."""
    return not is_lazy(tensor) and tensor.is_inference()
