"""Find, in one pass, which batch norm gets the output of which convolution or linear layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TRANSPOSED = frozenset([torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d])
LINEAR: frozenset[Any] = frozenset([torch.conv1d, torch.conv2d, torch.conv3d, F.linear]) | TRANSPOSED
NORMS: dict[Any, tuple[str, ...]] = {  # function -> names of its arguments
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}
PROPERTIES = ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_mkldnn", "is_quantized")
READS: frozenset[Any] = frozenset(  # functions that read no values
    [Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point]
) | {getattr(Tensor, name).__get__ for name in PROPERTIES}
OUTPUT = "output_of_layer"  # attribute of a tensor


class Norm(NamedTuple):
    """A batch norm in eval mode, by the names of its tensors; None: it has none."""

    mean: str
    var: str
    scale: str | None
    shift: str | None
    eps: float


@dataclass
class Linear:
    """A convolution or linear layer: its function, the name of its bias, and what gets its output."""

    function: Any
    bias: str | None
    readers: set[Norm | None] = field(default_factory=set)  # None: something else than a batch norm

    @property
    def norm(self) -> Norm | None:
        """Return the batch norm that alone gets the output."""
        return next(iter(self.readers)) if len(self.readers) == 1 else None


@dataclass
class OfLayer:
    """Mark of the output of a layer, and whether a batch norm has read it."""

    layer: Any
    read: bool = False


class Watch(TorchFunctionMode):
    """While active, record layers by the names of their weights, and batch norms by the names of their means."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(module).items()}
        self.layers: dict[str, Linear] = {}
        self.norms: set[str] = set()
        self.calls = self.elements = 0  # functions of the pass, and numbers that batch norms wrote

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, self.calls = kwargs or {}, self.calls + 1
        if func in NORMS:
            self._read(bound(NORMS[func], args, kwargs))
        elif func not in READS:
            for mark in marks(args, kwargs):
                mark.layer.readers.add(None)
        output = func(*args, **kwargs)
        if func in LINEAR:
            self._mark(func, bound(("input", "weight", "bias"), args, kwargs), output)
        return output

    def _read(self, given: Mapping[str, Any]) -> None:
        """Record a batch norm, and the layer that it reads."""
        tensors = [given.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
        mean, var, scale, shift = (self.names.get(id(tensor)) for tensor in tensors)
        self.norms.add(mean or "batch norm without running mean")
        known = all(tensor is None or id(tensor) in self.names for tensor in tensors)
        usable = known and mean is not None and var is not None and not given.get("training", False)
        mark = getattr(given["input"], OUTPUT, None)
        if mark is not None:
            norm = Norm(mean, var, scale, shift, given.get("eps", 1e-5)) if usable and mean and var else None
            mark.layer.readers.add(None if mark.read else norm)
            mark.read = True
            self.elements += given["input"].numel()

    def _mark(self, func: Any, given: Mapping[str, Any], output: Any) -> None:
        weight, bias = self.names.get(id(given["weight"])), given.get("bias")
        ndim = 2 if func is F.linear else given["weight"].ndim  # where channels are at 1, as a batch norm has them
        if weight is None or type(output) is not Tensor or output.ndim != ndim:
            return
        if bias is not None and id(bias) not in self.names:
            return
        layer = self.layers.setdefault(weight, Linear(func, self.names.get(id(bias))))
        if layer.function is not func or layer.bias != self.names.get(id(bias)):
            layer.readers.add(None)
        setattr(output, OUTPUT, OfLayer(layer))


def bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a function by their names."""
    return {**dict(zip(names, args)), **kwargs}


def marks(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[OfLayer]:
    """Yield the marks of tensors among arguments of a function, and in lists of them."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            mark = getattr(value, OUTPUT, None)
            if mark is not None:
                yield mark
        elif isinstance(value, (list, tuple)):
            yield from marks(value, {})


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by their names."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
