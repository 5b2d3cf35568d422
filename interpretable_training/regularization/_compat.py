"""Private names of torch that this room needs; `tests/regularization/test_compat_regularization.py` checks each."""

import sys
from collections.abc import Callable

import torch
from torch import nn


def call_after_backward(function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that is running; torch has no public way to do this."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def saved_tensors_are_hooked() -> bool:
    """Whether hooks on saved tensors are active, as in activation checkpointing; torch offers no public query."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def dynamo_is_loaded() -> bool:
    """Whether torch's compiler is loaded; without it nothing is compiled, and importing it takes seconds."""
    return "torch._dynamo" in sys.modules


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, by `torch.compile` or `Module.compile`; torch offers no public query."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
