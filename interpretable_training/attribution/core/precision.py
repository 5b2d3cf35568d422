"""Choose the precision of sums: float64, or float32 on devices without it (MPS)."""

from collections.abc import Callable

import torch
from torch import Tensor

NO_FLOAT64 = {"mps"}  # types of devices


def wide(like: Tensor) -> torch.dtype:
    """Return float64, in which sums over many images stay exact, or float32 on a device without it."""
    return torch.float32 if like.device.type in NO_FLOAT64 else torch.float64


def on_device(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `move`, changed to convert float64 tensors to float32 for devices without float64."""

    def moved(tensor: Tensor) -> Tensor:
        try:
            return move(tensor)
        except TypeError:  # raised by torch for float64
            if tensor.dtype != torch.float64:
                raise
            return move(tensor.float())

    return moved
