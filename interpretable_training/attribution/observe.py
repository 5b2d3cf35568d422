"""One place that prepares a model for being explained, and leaves it as it came, also after an error.

Inside `observe` the model runs in eval mode, without parameter gradients, outside inference mode and eagerly. Flags,
buffers and the state of all random generators are put back at the end. `.grad` is never written.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .targets import Resolved, Score, Target, pick_logits, resolve, score

Output = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Observed:
    """A prepared model: called with images (B, C, ...) it returns logits (B, N)."""

    module: nn.Module
    output: Output = None
    create_graph: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        return pick_logits(self.module(images), self.output)

    def resolve(self, images: Tensor, target: Target) -> Resolved:
        """One class per image for `target`; costs a forward pass."""
        if callable(target):
            return target
        with torch.no_grad():
            return resolve(target, self(images))

    def resolve_in(self, output: Any, target: Target) -> Resolved:
        """One class per image for `target`, of what the module returned."""
        return target if callable(target) else resolve(target, pick_logits(output, self.output))

    def score(self, images: Tensor, target: Resolved, on: Score = "logit") -> Tensor:
        """The explained number of each image, (B,); `target` is resolved."""
        return self.score_in(self.module(images), target, on)

    def score_in(self, output: Any, target: Resolved, on: Score = "logit") -> Tensor:
        """The explained number in what the module returned, (B,); `target` is resolved."""
        if not callable(target):
            return score(pick_logits(output, self.output), target, on)
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.ndim != 1:
            came = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"expected a target callable that returns one score per image, (B,), got {came}.")
        return scores


@contextmanager
def observe(
    model: nn.Module, output: Output = None, keep_mode: bool = False, create_graph: bool = False
) -> Iterator[Observed]:
    """Prepare `model`; what is yielded returns logits.

    Args:
        output: which part of the model's output are the logits: a key, an index, an attribute or a callable.
        keep_mode: leave dropout and batch norm in the mode they are in instead of eval mode.
        create_graph: keep the parameters in the graph, for a loss on the map.
    """
    module = unwrap(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # without it nothing can be compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_same_generators())
        stack.enter_context(_same_tensors(module))
        stack.enter_context(_same_flags(module, keep_mode, create_graph))
        yield Observed(module, output, create_graph)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile: no collectives, the user's names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module as model, got {type(model).__name__}.")
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, parallel) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def prepare(module: nn.Module, images: Tensor) -> Tensor:
    """`images` as the module needs them: floating, its dtype, outside inference mode and outside any graph."""
    if not isinstance(images, Tensor) or images.ndim < 3:
        came = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"expected images (B, C, H, W) or signals (B, C, T) as a tensor, got {came}.")
    if not images.is_floating_point():
        raise TypeError(f"expected floating point images, normalized as in training, got {images.dtype}.")
    if len(images) == 0:
        raise ValueError("expected at least one image, got an empty batch.")
    weight = next((p for p in module.parameters() if p.is_floating_point()), images)
    if weight.device != images.device:
        raise ValueError(
            f"expected images on the model's device {weight.device}, got {images.device}; move one of them."
        )
    if not torch.is_autocast_enabled(images.device.type):  # autocast casts by itself
        images = images.to(weight.dtype)
    return images.clone() if images.is_inference() else images.detach()


@contextmanager
def _same_flags(module: nn.Module, keep_mode: bool, create_graph: bool) -> Iterator[None]:
    # Flags are written directly: a module's own train() may do more than set a flag.
    training = [(m, m.training) for m in module.modules()]
    learned = [] if create_graph else [p for p in module.parameters() if p.requires_grad]
    try:
        for m, _ in training if not keep_mode else []:
            m.training = False
        for p in learned:
            p.requires_grad_(False)
        yield
    finally:
        for m, flag in training:
            m.training = flag
        for p in learned:
            p.requires_grad_(True)


@contextmanager
def _same_tensors(module: nn.Module) -> Iterator[None]:
    # Tensors made under inference mode cannot be saved for backward: they are replaced by copies for the time of the
    # call. Buffers that the forward pass changes (batch norm in train mode, counters) get their values back.
    tensors: list[tuple[dict[str, Any], str, Tensor]] = [
        (holder, name, tensor)
        for m in module.modules()
        for holder in (m._parameters, m._buffers)
        for name, tensor in holder.items()
        if tensor is not None
    ]
    swapped = [(holder, name, tensor) for holder, name, tensor in tensors if tensor.is_inference()]
    for holder, name, tensor in swapped:
        copy = tensor.clone()
        holder[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
    buffers = [
        (holder, name, t) for holder, name, t in tensors if not isinstance(t, nn.Parameter) and not t.is_inference()
    ]
    before = [(holder, name, t, t._version, t.clone()) for holder, name, t in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for holder, name, buffer, version, copy in before:
                holder[name] = buffer
                if buffer._version != version:
                    buffer.copy_(copy)
        for holder, name, tensor in swapped:
            holder[name] = tensor


@contextmanager
def _same_generators() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
