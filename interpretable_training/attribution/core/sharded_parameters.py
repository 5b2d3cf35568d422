"""Handle parameters that FSDP2 or tensor parallelism spread over processes."""

import sys
from typing import Any

from torch import nn


def whole(tensor: Any) -> Any:
    """Return the full tensor of one that is spread over processes, which must all call this; others unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of the module are spread over processes."""
    if not isinstance(module, nn.Module):  # prepare_model raises the error
        return False
    fsdp2 = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())  # not imported: nothing is sharded
    return any(isinstance(m, fsdp2) for m in module.modules()) or any(
        hasattr(p, "full_tensor") for p in module.parameters()
    )


def refuse_sharded(module: nn.Module, what: str) -> None:
    """Raise an error if parameters are spread over processes, before a pass that other processes would wait for."""
    if is_sharded(module):
        raise ValueError(
            f"expected a model with whole parameters, because {what} replaces them, got a {type(module).__name__} "
            "whose parameters are spread over processes (FSDP2 or tensor parallelism); load its checkpoint into a "
            "model on one device and pass that."
        )


def as_forward(module: nn.Module, name: str) -> Any:
    """Return a method of the module in which FSDP2 gathers parameters as in `forward`."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule) or name in vars(module):
        return getattr(module, name)
    fsdp.register_fsdp_forward_method(module, name)
    return vars(module).pop(name)
