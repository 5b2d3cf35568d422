"""Check options when they are set: values against their annotations, numbers against their ranges."""

import difflib
import functools
import importlib
import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from .ranges import check_ranges

ARRAYS = ("mean", "std", "shift", "draws")  # may be tensors and arrays where sequences are allowed
LARGEST = {int: 2**63, float: 1e30}


def _check_options(
    owner: str,
    options: Mapping[str, Any],
    hints: Mapping[str, Any],
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Raise an error for values that the annotation does not allow, numbers out of range, or mean without std.

    The default of an option is always allowed.
    """
    given = {name: value for name, value in options.items() if name not in defaults or value is not defaults[name]}
    numbers = {name: v for name, v in given.items() if not (isinstance(v, str) and "choice" in _kinds(hints.get(name)))}
    optional = [name for name, hint in hints.items() if type(None) in _parts(hint)]
    for name, value in given.items():
        if isinstance(value, Tensor) and Tensor in _parts(hints.get(name)):
            numbers.pop(name)  # one number per image or channel, checked where it is used
            _check_tensor(f"{name} of {owner}", value)
    check_ranges(owner, numbers, optional)
    for name, value in given.items():
        hint = hints.get(name, Any)
        is_array = isinstance(value, (Tensor, np.ndarray)) and Tensor not in _parts(hint) and name not in ARRAYS
        if fits(value, hint) and not is_array:
            continue
        choices = [choice for part in _literals(hint) for choice in get_args(part)]
        several = isinstance(value, (list, tuple)) and not any(get_origin(part) is Literal for part in _parts(hint))
        if choices and (isinstance(value, str) or several or set(_kinds(hint)) <= {"choice", "nothing"}):
            raise ValueError(f"expected {owner}.{name} to be one of {tuple(choices)}, got {value!r:.100}.")
        kinds = " or ".join(dict.fromkeys(_kinds(hint, choices)))
        tensors = isinstance(value, (list, tuple, np.ndarray)) and Tensor in _parts(hint)
        advice = "; pass one tensor, as torch.stack makes." if tensors else "."
        raise TypeError(f"expected {name} of {owner} as {kinds}, got {value!r:.100}{advice}")


def method_named(name: str) -> Any:
    """Return the method of a class name, in any case of letters, with its defaults.

    >>> method_named("gradcam").layer
    'auto'
    """
    room = importlib.import_module("interpretable_training.attribution")
    kinds = {key.lower(): key for key in room.__all__ if isinstance(getattr(room, key), type)}
    if name.lower() not in kinds:
        closest = [kinds[key] for key in difflib.get_close_matches(name.lower(), kinds, 3)]
        raise ValueError(f"expected the name of a method, such as 'GradCAM', got {name!r}; closest: {closest}.")
    try:
        return getattr(room, kinds[name.lower()])()
    except TypeError as error:
        raise ValueError(f"expected the name of a method that needs no options, got {name!r}: {error}") from error


def check_fields(instance: Any) -> None:
    """Raise an error for fields of a dataclass that their annotation or range does not allow."""
    cls = type(instance)
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in cls.__dataclass_fields__}
    defaults = {name: cls.__dataclass_fields__[name].default for name in hints}
    _check_options(cls.__name__, {name: getattr(instance, name) for name in hints}, hints, defaults)


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Raise an error for tensors without values, or with values that are complex or not finite."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not dense or tensor.is_complex() or not bool(tensor.isfinite().all()):
        raise ValueError(
            f"expected {name} as a dense tensor of finite real numbers, got {tuple(tensor.shape)} of {tensor.dtype}, "
            f"{tensor.layout}, on {tensor.device}."
        )


def with_checked_options(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that checks its options before it runs."""
    defaults = {p.name: p.default for p in list(inspect.signature(init).parameters.values())[1:]}

    @functools.wraps(init)
    def check(self: object, *args: Any, **kwargs: Any) -> None:
        given = {name: value for name, value in {**dict(zip(defaults, args)), **kwargs}.items() if name in defaults}
        _check_options(type(self).__name__, given, get_type_hints(init), defaults)
        init(self, *args, **kwargs)

    return check


def fits(value: Any, hint: Any) -> bool:
    """Whether an annotation allows a value; annotations of unknown kinds allow every value."""
    return any(_fits(value, part) for part in _parts(hint))


def _fits(value: Any, part: Any) -> bool:
    origin, inside = get_origin(part), get_args(part)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inside)
    if part in (int, float):
        kind = Integral if part is int else Real
        number = isinstance(value, kind) and not isinstance(value, bool)
        return number and math.isfinite(value) and abs(value) < LARGEST[int if isinstance(value, int) else part]
    if origin in (list, tuple, Sequence):
        if isinstance(value, (Tensor, np.ndarray)):
            value = value.tolist() if value.ndim == 1 and not getattr(value, "is_meta", False) else None
        is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return is_sequence and all(fits(v, inside[0] if inside else Any) for v in value)
    if origin is not None:
        part = origin
    if part is Callable:
        return callable(value)
    return not isinstance(part, type) or getattr(part, "_is_protocol", False) or isinstance(value, part)


def _parts(hint: Any) -> Collection[Any]:
    """Return the members of a union, or the annotation alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _literals(hint: Any) -> list[Any]:
    """Return the literals among the members of an annotation, also those of a sequence."""
    inside = [inner for part in _parts(hint) for inner in (part, *get_args(part))]
    return [part for part in inside if get_origin(part) is Literal]


def _kinds(hint: Any, choices: Sequence[Any] = ()) -> list[str]:
    """Return the words of error texts for the members of an annotation."""
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text", type(None): "nothing"}
    kinds = []
    for part in _parts(hint):
        origin = get_origin(part)
        if origin is Literal:
            kinds.append(f"one of {tuple(choices)}" if choices else "choice")
        elif origin in (list, tuple, Sequence):
            kinds.append(f"a sequence of {' or '.join(_kinds(get_args(part)[0]))}" if get_args(part) else "a sequence")
        else:
            kinds.append(words.get(part, getattr(origin or part, "__name__", str(part))))
    return kinds
