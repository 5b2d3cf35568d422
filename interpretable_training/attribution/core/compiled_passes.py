"""Compile passes without graph by torch, for shapes of images that come often; others run as they are."""

from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from ._compat import frozen_weights
from .targets import tensors_in

AFTER = 32  # passes of a shape before it is compiled, which takes as long as hundreds of passes
SHAPES = 4  # compiled at most
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of the largest number of an output


class CompiledPasses:
    """Compiled passes of one network whose weights stay as they are: they become part of the code.

    `seconds`: taken by compiling. `refused`: why nothing is compiled.
    """

    def __init__(self) -> None:
        self.passes: Counter[tuple[Any, ...]] = Counter()
        self.ready: dict[tuple[Any, ...], Callable[[Tensor], Any]] = {}
        self.seconds, self.refused = 0.0, ""

    def output_of(self, module: nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> Any:
        """Return the output of a compiled pass; None for a shape that is not compiled."""
        key = (images.shape, images.dtype, images.device)
        compiled = self.ready.get(key)
        if compiled is not None:
            return _call(compiled, images)
        self.passes[key] += 1
        if self.passes[key] == AFTER and len(self.ready) < SHAPES and not self.refused:
            self._compile(key, module, run, images)
        return None

    def _compile(self, key: Any, module: nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> None:
        """Compile passes of a shape, and keep them if they return what the network returns."""
        start, expected = perf_counter(), run(images)
        compiled = torch.compile(module, dynamic=False)
        try:
            with frozen_weights(graphs=images.device.type == "cuda"):
                output = _call(compiled, images)
        except Exception as error:  # whatever the compiler makes of a network
            self.refused = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return
        self.seconds += perf_counter() - start
        if equal_to_rounding(expected, output):
            self.ready[key] = compiled
        else:
            self.refused = "its output differs"

    def fact(self) -> str:
        """Return what is compiled, in words."""
        if self.refused:
            return f"not compiled, because {self.refused}"
        return f"{len(self.ready)} shapes compiled in {self.seconds:.0f} s"


def _call(compiled: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Return the output of compiled code, which is eager otherwise while a model is prepared."""
    with torch.compiler.set_stance("default"):
        output = compiled(images.clone())
    if images.device.type == "cuda":  # the next pass writes into the same memory
        output = apply_to_collection(output, Tensor, Tensor.clone, allow_frozen=True)
    return output


def equal_to_rounding(a: Any, b: Any) -> bool:
    """Whether two outputs of a network hold the same numbers up to rounding; False if they hold none."""
    first, second = list(tensors_in(a)), list(tensors_in(b))
    if not first or [t.shape for t in first] != [t.shape for t in second]:
        return False
    for x, y in zip(first, second):
        tolerance = TOLERANCE.get(x.dtype, 1e-4)
        largest = x.abs().nan_to_num(0, 0, 0).amax() if x.numel() and x.is_floating_point() else 0.0
        if not torch.allclose(x, y, rtol=0, atol=tolerance * float(largest), equal_nan=True):
            return False
    return True
