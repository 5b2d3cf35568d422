"""Private names of torch without a public counterpart; `test_compat_attribution.py` fails when torch changes them."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

COMPILED = "_orig_mod"  # attribute of a compiled module that holds the original, and part of its children's names


def saved_tensors_are_watched() -> bool:
    """Whether hooks on saved tensors are active, the only visible sign of activation checkpointing."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def original_of(module: nn.Module) -> nn.Module | None:
    """Return the module inside `torch.compile`, None for other modules: torch has no function to unwrap it."""
    return getattr(module, COMPILED, None)


def compiler_is_imported() -> bool:
    """Whether the compiler is imported, so that compiled code may exist; importing it takes seconds."""
    return "torch._dynamo" in sys.modules


def version_of(tensor: Tensor) -> int:
    """Return how often the tensor was written in place: comparing values would need a copy."""
    return tensor._version


def parameters_in(module: nn.Module) -> dict[str, Any]:
    """Return the dict of the module's own parameters, to replace some: assigning attributes would check and reorder."""
    return module._parameters


def buffers_in(module: nn.Module) -> dict[str, Any]:
    """Return the dict of the module's own buffers, to replace some: assigning attributes would check and reorder."""
    return module._buffers


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, by `torch.compile` or `Module.compile`; torch offers no public query."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that is running; torch has no public way to do this."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def hooks_of(module: nn.Module) -> bool:
    """Whether forward hooks of the module, before or after it, may read what it is given or returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def global_hooks() -> bool:
    """Whether hooks run around the forward of every module."""
    return bool(torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def packs_weights() -> bool:
    """Whether this build of torch runs convolutions with packed weights on the CPU."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def pack_weight(
    W: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, size: torch.Size
) -> Tensor:
    """Return the weight of a convolution in the layout that the CPU prefers for inputs of a size."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(W, padding, stride, dilation, groups, list(size))
    return packed


def packed_convolution(
    x: Tensor, W: Tensor, b: Tensor | None, padding: list[int], stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Return `torch.conv2d` of a packed weight."""
    output: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
        x, W, b, padding, stride, dilation, groups, "none", [], ""
    )
    return output


def frozen_weights(graphs: bool) -> AbstractContextManager[Any]:
    """Compile with weights as constants, and with CUDA graphs: `options=` of `torch.compile` do not freeze."""
    from torch._inductor import config  # takes seconds

    patch: AbstractContextManager[Any] = config.patch({"freezing": True, "triton.cudagraphs": graphs})
    return patch
