"""Calls of a network: with the images alone, or with other inputs of the batch."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from interpretable_training.batches.read import ANNOTATIONS, LABEL_KEYS, Picked

IMAGES = "<images>"  # stands for the images among the inputs


@dataclass(frozen=True)
class Inputs:
    """Names of what a network is called with, besides the images.

    >>> str(Inputs((IMAGES, "meta")))
    'images with meta of the batch'

    Attributes:
        args: entries of the batch, in order; `IMAGES` for the images.
        kwargs: parameter -> entry of the batch.
        as_dict: whether the whole batch is one argument, a dict.
    """

    args: tuple[str, ...] = (IMAGES,)
    kwargs: tuple[tuple[str, str], ...] = ()
    as_dict: bool = False

    @property
    def alone(self) -> bool:
        """Whether the images are the only input."""
        return self == Inputs()

    def call(self, row: Picked) -> Callable[[nn.Module, Tensor], Any]:
        """Return how the module is called with other images of one row, whose other inputs are repeated."""
        if self.alone:
            return lambda module, images: module(images)

        def run(module: nn.Module, images: Tensor) -> Any:
            n = len(images)
            entries = {
                IMAGES: images,
                **{name: _repeated(value, n, len(row.images)) for name, value in row.rest.items()},
            }
            if self.as_dict:
                return module({str(row.image_key): images, **{k: v for k, v in entries.items() if k != IMAGES}})
            return module(*(entries[name] for name in self.args), **{k: entries[name] for k, name in self.kwargs})

        return run

    def __str__(self) -> str:
        if self.as_dict:
            return "the whole batch as a dict"
        others = [name for name in self.args if name != IMAGES] + [k for k, name in self.kwargs if name != IMAGES]
        return f"images with {', '.join(others)} of the batch" if others else "images"


def _repeated(value: Any, n: int, rows: int) -> Any:
    """Return an entry of `rows` rows for n images; the network gets it as often as there are images."""
    times = n // rows
    if isinstance(value, Tensor) and value.ndim and len(value) == rows:
        return value if times == 1 else value.repeat(times, *[1] * (value.ndim - 1))
    return value * times if isinstance(value, list) and len(value) == rows else value


def likely_inputs(module: nn.Module, picked: Picked) -> Iterator[Inputs]:
    """Yield the ways in which a module may be called with a batch, the most likely first.

    >>> next(likely_inputs(network, Picked(images, None, None, None, {}))).alone
    True
    """
    parameters = _parameters(module)
    names = [p.name for p in parameters]
    required = [p.name for p in parameters if p.default is p.empty]
    others = [name for name in picked.rest if name not in (*LABEL_KEYS, *ANNOTATIONS)]
    image = next((n for n in names if n == str(picked.image_key).rpartition(".")[2]), names[0] if names else "")
    extras = tuple((name, name) for name in names if name in others and name != image)
    if extras and set(required) <= {image, *(k for k, _ in extras)}:
        yield Inputs((), ((image, IMAGES), *extras))
    tensors = [name for name in others if isinstance(picked.rest[name], (Tensor, list))]
    if 1 < len(required) <= 1 + len(tensors):
        yield Inputs((IMAGES, *tensors[: len(required) - 1]))
    yield Inputs()
    if picked.image_key is not None:
        if image == str(picked.image_key):
            yield Inputs((), ((image, IMAGES),))
        yield Inputs(as_dict=True)


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a module's forward that a caller can name."""
    forward = getattr(module, "forward", module)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        return [p for p in inspect.signature(forward).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        return []
