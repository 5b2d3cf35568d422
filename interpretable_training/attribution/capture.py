"""Run a model once and keep what single layers returned, with the gradients of the explained score.

The graph starts at the kept layer: what lies below it runs without graph. Gradients come from `torch.autograd.grad`
against the kept activation A. The model goes on with a copy of A, so that an in-place activation behind the layer
changes neither A nor what its gradient belongs to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .choose import candidates
from .grids import Grid, find_grid, first_tensor, prefix_tokens, with_first
from .observe import Observed
from .targets import Resolved, Score, Target


@dataclass(frozen=True)
class Captured:
    """What one pass gave: the activations A of each layer, gradients dA if asked for, and one class per image.

    A, dA: (B, K, *spatial).
    """

    output: Any
    target: Resolved
    grids: dict[str, Grid]
    A: dict[str, Tensor]
    dA: dict[str, Tensor]  # noqa: N815  the formula's letters


def capture(
    observed: Observed,
    images: Tensor,
    layers: Sequence[str],
    target: Target = None,
    *,
    gradient: bool = True,
    on: Score = "logit",
    rule: AbstractContextManager[Any] | None = None,
) -> Captured:
    """One forward pass and, with `gradient`, one backward pass for all `layers`.

    Args:
        rule: active during the forward pass, for gradients that follow other rules than the plain one.
    """
    grad = torch.set_grad_enabled(gradient or observed.create_graph)
    with grad, tap(observed.module, layers) as kept, rule or nullcontext():
        output = observed.module(images)
    A = {name: _ran(kept, name) for name in layers}
    grids = {name: grid_of(observed, images, name, A[name], target) for name in layers}
    target = observed.resolve_in(output, target)
    dA: dict[str, Tensor] = {}
    if gradient:
        dA = _gradients(observed.score_in(output, target, on), A, observed.create_graph)
        for name in layers:
            _refuse_useless(observed, images, name, grids[name], dA[name], target)
    A = {name: grids[name].read(A[name]) for name in layers}
    dA = {name: grids[name].read(dA[name]) for name in dA}
    return Captured(output, target, grids, A, dA)


@contextmanager
def tap(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of the named layers while inside; a layer that runs several times keeps its last output."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            A = first_tensor(output)
            if A is None:
                raise ValueError(f"expected a tensor from layer {name!r}, got {type(output).__name__}.")
            if torch.is_grad_enabled() and not A.requires_grad:
                A = A.detach().requires_grad_()
            kept[name] = A
            return with_first(output, A.clone())

        return hook

    handles = [get_layer(module, name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def get_layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name; "" is the model itself."""
    named = dict(module.named_modules())
    if name not in named:
        closest = get_close_matches(name, named, n=3, cutoff=0.3)
        raise ValueError(
            f"expected the name of a layer of {type(module).__name__}, got {name!r}; closest: {closest}. "
            "All names: [name for name, _ in model.named_modules()]."
        )
    return named[name]


def _ran(kept: dict[str, Tensor], name: str) -> Tensor:
    if name not in kept:
        raise RuntimeError(f"expected layer {name!r} to run in the forward pass, but it did not; choose one that does.")
    return kept[name]


def _gradients(score: Tensor, A: dict[str, Tensor], create_graph: bool) -> dict[str, Tensor]:
    if not score.requires_grad:  # nothing of the score depends on the layers
        return {name: torch.zeros_like(tensor) for name, tensor in A.items()}
    found = torch.autograd.grad(score.sum(), list(A.values()), create_graph=create_graph, allow_unused=True)
    return {name: torch.zeros_like(A[name]) if g is None else g for name, g in zip(A, found)}


def grid_of(observed: Observed, images: Tensor, name: str, A: Tensor, target: Target) -> Grid:
    """How to read the output `A` of a layer, an error if it is no grid over the images."""
    size, prefix = images.shape[2:], prefix_tokens(observed.module, name)
    grid = find_grid(A.shape, size, prefix, strict=False) or find_grid(A.shape, size)
    if grid is None:
        raise ValueError(
            f"expected a layer whose output is a grid over images of {' x '.join(map(str, size))}, "
            f"got layer {name!r} with output {tuple(A.shape)}{_better(observed, images, target)}"
        )
    return grid


def _refuse_useless(observed: Observed, images: Tensor, name: str, grid: Grid, dA: Tensor, target: Target) -> None:
    # Behind the last attention of a model that reads its class token, no patch token matters any more.
    if grid.prefix and not dA[:, grid.prefix :].any() and dA[:, : grid.prefix].any():
        raise ValueError(
            f"expected a layer whose patch tokens reach the score, got layer {name!r}, behind which only its "
            f"{grid.prefix} prefix tokens are read{_better(observed, images, target)}"
        )


def _better(observed: Observed, images: Tensor, target: Target) -> str:
    found = [c for c in candidates(observed, images, target) if c.reaches][:3]
    names = [f"{c.name!r} ({c.grid})" for c in found]
    return f"; better: {', '.join(names)}." if names else "; the model has no layer with such a grid."
