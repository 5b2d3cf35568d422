"""Run convolutions and linear layers with the batch norms behind them folded into their weights, see `scoring`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._compat import pack_weight, packed_convolution, version_of
from .layer_pairs import LINEAR, NORMS, OUTPUT, READS, TRANSPOSED, Linear, OfLayer, bound, marks
from .precision import wide

MULTIPLICATIONS = 2**22  # of a convolution, about, from which packed weights are faster; measured on a CPU


class OtherPassError(Exception):
    """Signal: a pass hands a tensor from one function to another than the watched pass did."""


class FoldedLayer:
    """A layer with the batch norm behind it folded into its weight and bias, see (1) of `scoring`.

    Args:
        layer: names and function of the layer.
        weight: the name of its weight.
        tensors: parameters and buffers of the module by name.
        packs: whether the CPU runs convolutions with packed weights.
        dtype: of passes under autocast: weights are converted once, not in each pass.
    """

    def __init__(
        self,
        layer: Linear,
        weight: str,
        tensors: Mapping[str, Tensor],
        packs: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        norm = layer.norm
        self.mean, self.eps = None if norm is None else tensors[norm.mean], 0.0 if norm is None else norm.eps
        self.W, self.b = tensors[weight], None if layer.bias is None else tensors[layer.bias]
        self.packs = packs and layer.function is torch.conv2d and self.W.dtype == torch.float32
        self.dtype = self.W.dtype if dtype is None else dtype
        self.transposed = layer.function in TRANSPOSED
        self.packed: Tensor | None = None
        self.norm = None if norm is None else [None if name is None else tensors[name] for name in norm[:4]]
        self.weight: Tensor = self.W
        self.bias: Tensor | None = self.b
        self.sources = [tensor for tensor in (self.W, self.b, *(self.norm or ())) if tensor is not None]
        self.versions: list[int] = []

    def update(self) -> None:
        """Fold again if a tensor was written since the last time."""
        versions = [version_of(tensor) for tensor in self.sources]
        if versions == self.versions:
            return
        self.versions, self.packed = versions, None
        self.weight, self.bias = (self.W, self.b) if self.norm is None else self._folded(self.norm)
        self.weight, self.bias = self.weight.to(self.dtype), None if self.bias is None else self.bias.to(self.dtype)

    def _folded(self, norm: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Return weight and bias with the batch norm in them."""
        dtype = wide(self.W)
        m, v, g, t = (tensor if tensor is None else tensor.to(dtype) for tensor in norm)
        assert isinstance(m, Tensor)
        assert isinstance(v, Tensor)
        s = (v + self.eps).rsqrt() if g is None else g * (v + self.eps).rsqrt()
        b = -s * m if self.b is None else s * (self.b.to(dtype) - m)
        return _scaled(self.W, s.to(self.W), self.transposed), (b if t is None else b + t).to(self.W)  # (1)

    def __call__(self, func: Any, x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """Return the output for an input and the arguments of the function behind the bias."""
        if self.packs and _suits_packing(x, self.weight):
            output = self._packed(x.to(self.dtype), *rest, **named)
        elif self.packs and _is_one_cell(x, self.weight, *rest, **named):
            output = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        else:
            output = func(x, self.weight, self.bias, *rest, **named)
        if self.norm is not None:
            setattr(output, OUTPUT, OfLayer(self))
        return output

    def _packed(self, x: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:
        """Return the output of a convolution with packed weights."""
        if isinstance(padding, str):
            return torch.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        places = ([n, n] if isinstance(n, int) else list(n) for n in (padding, stride, dilation))
        pads, strides, dilations = places
        if self.packed is None:
            self.packed = pack_weight(self.weight, pads, strides, dilations, groups, x.shape)
        return packed_convolution(x, self.packed, self.bias, pads, strides, dilations, groups)


def _suits_packing(x: Tensor, W: Tensor) -> bool:
    """Whether a convolution is large enough for packed weights, which cost some time for each call."""
    if type(x) is not Tensor or x.ndim != 4 or x.dtype not in (torch.float32, W.dtype):
        return False
    return x.numel() * W[0].numel() >= MULTIPLICATIONS and x.is_contiguous(memory_format=torch.channels_last)


def _is_one_cell(x: Tensor, W: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> bool:
    """Whether a convolution is a product of matrices: of one cell, as in squeeze and excitation."""
    whole = type(x) is Tensor and x.ndim == 4 and x.shape[2:] == (1, 1) == W.shape[2:] and groups == 1
    return whole and padding in (0, (0, 0))


def _scaled(W: Tensor, s: Tensor, transposed: bool) -> Tensor:
    """Return a weight whose output channels are multiplied by s."""
    if not transposed:  # (out, in, ...)
        return W * s.view(-1, *[1] * (W.ndim - 1))
    groups = len(s) // W.shape[1]  # (in, out of a group, ...)
    return (W.unflatten(0, (groups, -1)) * s.view(groups, 1, -1, *[1] * (W.ndim - 2))).flatten(0, 1)


class Folding(TorchFunctionMode):
    """While active, run layers as folded, and return the input of batch norms that are part of them.

    `differs` is set if a tensor goes another way than in the watched pass: the output of this pass means nothing then.
    """

    def __init__(self, layers: Mapping[int, FoldedLayer]) -> None:
        super().__init__()
        self.layers, self.differs, self.unread = layers, False, 0

    def output_of(self, run: Callable[[Tensor], Any], images: Tensor) -> Any:
        """Return the output of a pass with this mode; None if it `differs`."""
        for layer in self.layers.values():
            layer.update()
        try:
            with self:
                output = run(images)
        except OtherPassError:
            return None
        self.differs = self.differs or self.unread > 0
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            return func(*args, **kwargs)
        if func in NORMS:
            mark = getattr(args[0] if args else kwargs["input"], OUTPUT, None)
            if mark is not None:
                return self._skip(mark, bound(NORMS[func], args, kwargs))
        else:
            for _ in marks(args, kwargs):
                raise self.other()
            if func in LINEAR:
                layer = self.layers.get(id(args[1] if len(args) > 1 else kwargs.get("weight")))
                if layer is not None:
                    return self._run(layer, func, args, kwargs)
        return func(*args, **kwargs)

    def _run(self, layer: FoldedLayer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the output of a folded layer."""
        given = bound(("input", "weight", "bias"), args, kwargs)
        if given.get("bias") is not layer.b:
            raise self.other()
        self.unread += layer.norm is not None
        named = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
        return layer(func, given["input"], args[3:], named)

    def _skip(self, mark: OfLayer, given: Mapping[str, Any]) -> Tensor:
        """Return the output of a layer in place of that of its batch norm."""
        layer = mark.layer
        ours = isinstance(layer, FoldedLayer) and not mark.read  # else a tensor that the network stored
        same = ours and given.get("running_mean") is layer.mean and given.get("eps", 1e-5) == layer.eps
        if not same or given.get("training", False):
            raise self.other()
        mark.read = True
        self.unread -= 1
        output: Tensor = given["input"].detach()  # another tensor: using that of the layer once more is noticed
        return output

    def other(self) -> OtherPassError:
        """Return the signal that ends the pass, which the network may catch."""
        self.differs = True
        return OtherPassError()
