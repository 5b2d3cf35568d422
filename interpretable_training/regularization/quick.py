"""Faster second derivatives: replace torch's convolution and batch norm while a mode is active."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interpretable_training.attribution.core._compat import saved_tensors_are_watched

from .batch_norm import batch_norm
from .convolution import Convolution, Geometry, Switch

DIMENSIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


class Quick(TorchFunctionMode):
    """While active, convolutions and batch norm give the same results, with faster second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = Switch()
        self.checkpointed = False  # whether parts of the forward pass are checkpointed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        # Activation checkpointing runs the forward pass again outside of this mode, and expects the same saved tensors.
        checkpointed = saved_tensors_are_watched()
        self.checkpointed |= checkpointed
        ours = (func in DIMENSIONS or func is F.batch_norm) and not checkpointed
        if ours and isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            if func is F.batch_norm:
                return batch_norm(*args, **kwargs)
            return self._convolve(DIMENSIONS[func], *args, **kwargs)
        return func(*args, **kwargs)

    def _convolve(
        self,
        n: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """Return `F.conv1d`, `F.conv2d` or `F.conv3d`, of n dimensions."""
        if isinstance(padding, str) or input.ndim != n + 2:
            return (F.conv1d, F.conv2d, F.conv3d)[n - 1](input, weight, bias, stride, padding, dilation, groups)
        x, w, b, device = input, weight, bias, input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
        stride, padding, dilation = ([s] * n if isinstance(s, int) else list(s) for s in (stride, padding, dilation))
        y = Convolution.apply(x, w, b, Geometry(stride, padding, dilation, False, [0] * n, groups), self.switch)
        assert isinstance(y, Tensor)
        return y
