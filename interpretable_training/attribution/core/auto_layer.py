"""Which layer to explain: found by looking at what really runs, not at names.

One image goes through the model. Every output is a candidate that is a grid over the image and that was not made by
pooling, dropout, recurrence or the inside of an attention block. The last one from which a gradient reaches the grid is
chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .feature_grids import Grid, find_grid, first_tensor, named_layers, prefix_tokens
from .prepared_model import PreparedModel
from .targets import Target, check_scores, pick_logits

POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d,
    ),
    *(nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
)
NO_FEATURE = (
    *(*POOLING, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Softmax),
    nn.RNNBase,  # whose state at one time tells of all times before
)

# A memo, not a state: the choice depends on the model and the image size alone, and looking costs a pass of one image.
_chosen: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], str]] = WeakKeyDictionary()


class _Output(NamedTuple):
    name: str
    module: nn.Module
    tensor: Tensor


@dataclass(frozen=True)
class Candidate:
    """A layer that could be explained; `reaches` says whether the score's gradient reaches its grid."""

    name: str
    grid: Grid
    reaches: bool


def choose_layer(prepared: PreparedModel, images: Tensor, target: Target = None) -> str:
    """The name of the last spatial layer that the score depends on."""
    ordinary = prepared.output is None and not callable(target)  # one model may have several outputs to explain
    memo = _chosen.setdefault(prepared.module, {}) if ordinary else {}
    size = tuple(images.shape[1:])
    if memo.get(size) in named_layers(prepared.module):
        return memo[size]
    found = candidates(prepared, images, target)
    if not found:
        raise ValueError(
            f"expected a model with a layer whose output is a grid over images of {tuple(images.shape[2:])}, "
            f"got none in {type(prepared.module).__name__}; pass layer= with the name of one."
        )
    for candidate in found:
        if candidate.reaches:
            memo[size] = candidate.name
            return candidate.name
    return found[0].name  # a score that depends on nothing: every map is zero, and nothing was learned for the memo


def candidates(prepared: PreparedModel, images: Tensor, target: Target = None) -> list[Candidate]:
    """All layers that could be explained, the last one to run first."""
    with torch.enable_grad():
        image = images[:1].detach().clone().requires_grad_()
        outputs, result = _record(prepared, image)
        if callable(target):
            score = check_scores(target(result), result, 1, gradient=False)
        else:
            score = pick_logits(result, prepared.output).amax(1)
        made = _last_of_each(outputs)
        spatial = _spatial(prepared, made, image, strict=True) or _spatial(prepared, made, image, strict=False)
        gradients = _gradients(score, [found.tensor for found, _ in spatial])
        none = score.new_zeros((), dtype=torch.bool)
        flags = [none if g is None else grid.read(g).any().to(none) for (_, grid), g in zip(spatial, gradients)]
    reached = torch.stack(flags).tolist() if flags else []  # once, not for each layer: it waits for the device
    return [Candidate(found.name, grid, reaches) for (found, grid), reaches in zip(spatial, reached)][::-1]


def scale_layers(prepared: PreparedModel, images: Tensor, target: Target = None) -> list[Candidate]:
    """For each size of grid the last layer of that size, from the finest to the coarsest.

    The first layers of a block that makes the grid coarser still have the size of its input: the input stands for it.
    """
    found = candidates(prepared, images, target)
    found = [c for c in found if c.reaches] or found
    last = {c.name: c for c in reversed(found)}  # of a layer that runs several times
    best: dict[tuple[int, ...], tuple[int, Candidate]] = {}
    for c in found:
        if last[c.name] is c:
            depth = _inside_coarser(prepared.module, c, found)
            if c.grid.shape not in best or depth < best[c.grid.shape][0]:
                best[c.grid.shape] = (depth, c)
    order = list(dict.fromkeys(c.grid.shape for c in found if c.grid.shape in best))
    scales: list[Candidate] = []
    for shape in order:  # from the coarsest on; what lies before an upsampling is no scale of its own
        if not scales or math.prod(shape) > math.prod(scales[-1].grid.shape):
            scales.append(best[shape][1])
    return scales[::-1]


def _inside_coarser(module: nn.Module, candidate: Candidate, found: list[Candidate]) -> int:
    """In how many blocks it lies that make the grid coarser; containers that only chain layers do not count."""
    parts, named = candidate.name.split("."), named_layers(module)
    around = [".".join(parts[:k]) for k in range(1, len(parts))]
    cells = math.prod(candidate.grid.shape)
    coarser = [c.name for c in found if math.prod(c.grid.shape) < cells]
    blocks = [n for n in around if not isinstance(named[n], nn.Sequential)]
    return sum(any(f"{name}.".startswith(f"{n}.") for name in coarser) for n in blocks)


def _record(prepared: PreparedModel, image: Tensor) -> tuple[list[_Output], Any]:
    outputs: list[_Output] = []

    def record(name: str, child: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.requires_grad:
                outputs.append(_Output(name, child, tensor))

        return hook

    named = {child: name for name, child in named_layers(prepared.module).items() if name}
    handles = [child.register_forward_hook(record(name, child)) for child, name in named.items()]
    try:
        return outputs, prepared.run(image)
    finally:
        for handle in handles:
            handle.remove()


def _last_of_each(outputs: list[_Output]) -> list[_Output]:
    # Containers, in-place and passing layers return the tensor of a module before them: the first of each tensor made
    # it, the last is its name and its place: a residual block may add in place to what it made before its shortcut ran.
    # What pooling or dropout made is no feature.
    groups: dict[int, list[_Output]] = {}
    for found in outputs:
        groups.setdefault(id(found.tensor), []).append(found)
        if not isinstance(found.module, nn.Identity):
            groups[id(found.tensor)] = groups.pop(id(found.tensor))  # to the end
    named = [[f for f in group if not isinstance(f.module, nn.Identity)] or group for group in groups.values()]
    return [group[-1] for group in named if not isinstance(group[0].module, NO_FEATURE)]


def _spatial(
    prepared: PreparedModel, outputs: list[_Output], image: Tensor, strict: bool
) -> list[tuple[_Output, Grid]]:
    spatial = []
    for found in outputs:
        prefix = prefix_tokens(prepared.module, found.name)
        grid = find_grid(found.tensor.shape, image.shape[2:], prefix, strict)
        if grid is not None and (grid.layout == "first" or _on_stream(found.module)) and math.prod(grid.shape) > 1:
            spatial.append((found, grid))
    tokens = [found.tensor.shape[-1] for found, grid in spatial if grid.layout == "tokens"]
    return [(f, grid) for f, grid in spatial if grid.layout != "tokens" or f.tensor.shape[-1] == tokens[-1]]


def _on_stream(module: nn.Module) -> bool:
    # Blocks and normalization layers carry the stream of tokens; single linear layers make queries, keys and values,
    # and tokens of another width than the last are inside of a block.
    weight = getattr(module, "weight", None)
    return any(module.children()) or (isinstance(weight, Tensor) and weight.ndim == 1)


def _gradients(score: Tensor, tensors: list[Tensor]) -> Sequence[Tensor | None]:
    if not tensors or not score.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(score.sum(), tensors, allow_unused=True)
