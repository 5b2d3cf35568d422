"""Run a model once and store the outputs of single layers, with gradients of the explained score.

The graph starts at the captured layer: earlier layers run without graph. Gradients come from `torch.autograd.grad` with
respect to the captured activation A. Later layers get a copy of A, so that in-place activations do not change A.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .auto_layer import candidates
from .feature_grids import Grid, find_grid, first_tensor, named_layers, prefix_tokens, with_first
from .prepared_model import PreparedModel
from .targets import Resolved, Score, Target


@dataclass(frozen=True)
class Captured:
    """Result of one pass: the output of the model, the class of each image, and the features of each layer.

    A: activations (B, K, *spatial). dA: their gradients, and y: the explained score (B,), if requested. runs: number of
    runs of each layer.
    """

    output: Any
    target: Resolved
    grids: dict[str, Grid]
    runs: dict[str, int]
    A: dict[str, Tensor]
    dA: dict[str, Tensor]  # noqa: N815  the formula's letters
    y: Tensor | None = None


def capture(
    prepared: PreparedModel,
    images: Tensor,
    layers: Sequence[str],
    target: Target = None,
    *,
    gradient: bool = True,
    score: Score = "logit",
    rule: AbstractContextManager[Any] | None = None,
) -> Captured:
    """Run one forward pass and, with `gradient`, one backward pass for all `layers`.

    Args:
        rule: a context of the forward pass that changes the gradient rule, such as a mode of `gates`.
    """
    grad = torch.set_grad_enabled(gradient or prepared.create_graph)
    dA: dict[str, Tensor] = {}
    y = None
    with grad, tap(prepared.module, layers, gradient) as outputs:  # also in the backward pass, which may recompute
        with rule or nullcontext():
            output = prepared.run(images)
        A = {name: ran(outputs, name)[-1] for name in layers}
        grids = {name: grid_of(prepared, images, name, A[name], target) for name in layers}
        target = (
            prepared.confirm_in(output, target) if isinstance(target, Tensor) else prepared.resolve_in(output, target)
        )
        if gradient:
            y = prepared.score_in(output, target, score)
            dA = gradients(y, A, create_graph=prepared.create_graph)
    for name in dA:
        _refuse_useless(prepared, images, name, grids[name], dA[name], target)
    runs = {name: len(outputs[name]) for name in layers}
    A = {name: grids[name].read(A[name]) for name in layers}
    dA = {name: grids[name].read(dA[name]) for name in dA}
    return Captured(output, target, grids, runs, A, dA, y)


@contextmanager
def tap(module: nn.Module, layers: Sequence[str], gradient: bool = True) -> Iterator[dict[str, list[Tensor | None]]]:
    """Yield name -> outputs of the named layers, filled by forward passes inside the block.

    The list of a layer has one entry per run; only the last is a tensor, earlier ones are None.
    """
    outputs: dict[str, list[Any]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            A = first_tensor(output)
            if A is None:
                raise ValueError(f"expected a tensor from layer {name!r}, got {type(output).__name__}.")
            if gradient:
                refuse_no_grad(f"layer {name!r}")
            if torch.is_grad_enabled() and not A.requires_grad:
                A = A.detach().requires_grad_()
            outputs[name] = [None] * len(outputs.get(name, [])) + [A]
            return with_first(output, A.clone())

        return hook

    handles = [get_layer(module, name).register_forward_hook(record(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def refuse_no_grad(what: str) -> None:
    """Raise an error where gradients are off: the map would be zero everywhere."""
    if not torch.is_grad_enabled():
        raise RuntimeError(
            f"expected gradients to be on where {what} runs, but the model's own forward turns them off (no_grad, "
            "inference_mode or reentrant checkpointing); explain a layer that runs outside of it."
        )


def get_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule of that name; "" is the model itself."""
    named = named_layers(module)
    if name not in named:
        closest = get_close_matches(name, named, n=3, cutoff=0.3)
        raise ValueError(
            f"expected the name of a layer of {type(module).__name__}, got {name!r}; closest: {closest}. "
            "All names: [name for name, _ in model.named_modules()]."
        )
    return named[name]


def ran(outputs: dict[str, list[Tensor | None]], name: str) -> list[Tensor]:
    """Return the outputs of a layer that `tap` stored; raise an error if the layer did not run."""
    if name not in outputs:
        raise RuntimeError(f"expected layer {name!r} to run in the forward pass, but it did not; choose one that does.")
    return outputs[name]  # type: ignore[return-value]  # the last entry is a tensor


def gradients(
    score: Tensor, A: dict[str, Tensor], create_graph: bool = False, retain_graph: bool | None = None
) -> dict[str, Tensor]:
    """Return gradients of the score (B,) with respect to each tensor; zero for tensors without effect on it."""
    if not score.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in A.items()}
    tensors = list(A.values())
    grads = torch.autograd.grad(
        score.sum(), tensors, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
    )
    return {name: torch.zeros_like(A[name]) if g is None else g for name, g in zip(A, grads)}


def grid_of(prepared: PreparedModel, images: Tensor, name: str, A: Tensor, target: Target) -> Grid:
    """Return the grid of the output `A` of a layer; raise an error if it is no grid over the images."""
    size, prefix = images.shape[2:], prefix_tokens(prepared.module, name)
    layer = get_layer(prepared.module, name)
    if isinstance(layer, nn.RNNBase) and layer.batch_first and A.ndim == 3 and len(size) == 1:
        return Grid("last", tuple(A.shape[1:2]))  # features could be mistaken for time steps
    grid = find_grid(A.shape, size, prefix, strict=False) or find_grid(A.shape, size, strict=False)
    if grid is None:
        raise ValueError(
            f"expected a layer whose output is a grid over images of {' x '.join(map(str, size))}, "
            f"got layer {name!r} with output {tuple(A.shape)}{_better(prepared, images, target)}"
        )
    return grid


def _refuse_useless(prepared: PreparedModel, images: Tensor, name: str, grid: Grid, dA: Tensor, target: Target) -> None:
    # After the last attention of a model that reads its class token, patch tokens have no effect on the score.
    if grid.prefix and not dA[:, grid.prefix :].any() and dA[:, : grid.prefix].any():
        raise ValueError(
            f"expected a layer whose patch tokens reach the score, got layer {name!r}, behind which only its "
            f"{grid.prefix} prefix tokens are read{_better(prepared, images, target)}"
        )


def _better(prepared: PreparedModel, images: Tensor, target: Target) -> str:
    layers = [c for c in candidates(prepared, images, target) if c.reaches][:3]
    names = [f"{c.name!r} ({c.grid})" for c in layers]
    return f"; better: {', '.join(names)}." if names else "; the model has no layer with such a grid."
