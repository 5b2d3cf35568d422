"""Choose the layer to explain from one forward pass, not from names of layers.

One image is run through the model. Candidates are the outputs that form a grid over the image and do not come from
pooling, dropout, recurrence or the inside of an attention block. The last candidate that receives a gradient of the
score on its grid is chosen.
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
from .targets import OutputScores, Target, check_scores, pick_logits

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
    nn.RNNBase,  # its state at one time step depends on all time steps before
)

QUERIES = ("qkv", "q", "q_proj", "to_q", "query")  # of attention

# A memo: the choice depends on the model and the image size alone, and costs a pass of one image.
_chosen: WeakKeyDictionary[nn.Module, dict[tuple[int | str, ...], str]] = WeakKeyDictionary()


class _Output(NamedTuple):
    name: str
    module: nn.Module
    tensor: Tensor


@dataclass(frozen=True)
class Candidate:
    """A layer that can be explained; `reaches`: whether the gradient of the score reaches its grid."""

    name: str
    grid: Grid
    reaches: bool
    channels: int = 0
    images: int = 1  # rows; more where a layer runs on parts of the image


def choose_layer(prepared: PreparedModel, images: Tensor, target: Target = None) -> str:
    """Return the name of the last spatial layer that the score depends on."""
    scores = prepared.output if isinstance(prepared.output, OutputScores) else None
    ordinary = (prepared.output is None or scores is not None) and not callable(target)
    memo = _chosen.setdefault(prepared.module, {}) if ordinary else {}  # not for logits that a caller picks
    size = (*images.shape[1:], "" if scores is None else scores.memo_key)
    if memo.get(size) in named_layers(prepared.module):
        return memo[size]
    layers = candidates(prepared, images, target)
    if scores is not None:
        layers = encoder_first(layers, scores, prepared, images)
    if not layers:
        raise ValueError(
            f"expected a model with a layer whose output is a grid over images of {tuple(images.shape[2:])}, "
            f"got none in {type(prepared.module).__name__}; pass layer= with the name of one."
        )
    for candidate in layers:
        if candidate.reaches:
            memo[size] = candidate.name
            return candidate.name
    return layers[0].name  # the score depends on no layer: every map is zero, and the choice is not stored


def encoder_first(
    layers: list[Candidate], scores: OutputScores, prepared: PreparedModel, images: Tensor
) -> list[Candidate]:
    """Return layers of a dense output, those at the end of the encoder first: the coarsest grid, the outermost names.

    Layers that run on parts of the image, and those with as many channels as the output has classes, come last.
    """
    with torch.no_grad():
        N = scores.dense(prepared.run(images[:1]))
    if N is None:
        return layers
    inner = [c for c in layers if c.images == 1 and c.channels != N and c.reaches] or layers
    cells = min((math.prod(c.grid.shape) for c in inner), default=0)
    coarse = [c for c in inner if math.prod(c.grid.shape) == cells]
    depth = min((c.name.count(".") for c in coarse), default=0)
    return sorted(layers, key=lambda c: (c not in coarse, c.name.count(".") != depth))


def candidates(prepared: PreparedModel, images: Tensor, target: Target = None) -> list[Candidate]:
    """Return all layers that can be explained, in reverse order of their runs."""
    with torch.enable_grad():
        image = images[:1].detach().clone().requires_grad_()
        outputs, result = _record(prepared, image)
        if callable(target):
            score = check_scores(target(result), result, 1, gradient=False)
        else:
            score = pick_logits(result, prepared.output).amax(1)
        features = _last_of_each(outputs)
        spatial = _spatial(prepared, features, image, strict=True) or _spatial(prepared, features, image, strict=False)
        gradients = _gradients(score, [output.tensor for output, _ in spatial])
        none = score.new_zeros((), dtype=torch.bool)
        flags = [none if g is None else grid.read(g).any().to(none) for (_, grid), g in zip(spatial, gradients)]
    reached = torch.stack(flags).tolist() if flags else []  # once, not for each layer: it synchronizes with the device
    shapes = [(grid.read(output.tensor).shape[1], len(output.tensor)) for output, grid in spatial]
    return [Candidate(o.name, grid, reaches, *shape) for (o, grid), reaches, shape in zip(spatial, reached, shapes)][
        ::-1
    ]


def scale_layers(prepared: PreparedModel, images: Tensor, target: Target = None) -> list[Candidate]:
    """Return the last layer of each grid size, from the finest grid to the coarsest.

    The first layers of a block that makes the grid coarser have the grid size of its input; the input is preferred.
    """
    layers = candidates(prepared, images, target)
    layers = [c for c in layers if c.reaches] or layers
    last = {c.name: c for c in reversed(layers)}  # the last run of each layer
    best: dict[tuple[int, ...], tuple[int, Candidate]] = {}
    for c in layers:
        if last[c.name] is c:
            depth = _inside_coarser(prepared.module, c, layers)
            if c.grid.shape not in best or depth < best[c.grid.shape][0]:
                best[c.grid.shape] = (depth, c)
    order = list(dict.fromkeys(c.grid.shape for c in layers if c.grid.shape in best))
    scales: list[Candidate] = []
    for shape in order:  # from the coarsest on; layers before an upsampling add no scale
        if not scales or math.prod(shape) > math.prod(scales[-1].grid.shape):
            scales.append(best[shape][1])
    return scales[::-1]


def _inside_coarser(module: nn.Module, candidate: Candidate, layers: list[Candidate]) -> int:
    """Return the number of blocks around a layer that make the grid coarser; `nn.Sequential` does not count."""
    parts, named = candidate.name.split("."), named_layers(module)
    around = [".".join(parts[:k]) for k in range(1, len(parts))]
    cells = math.prod(candidate.grid.shape)
    coarser = [c.name for c in layers if math.prod(c.grid.shape) < cells]
    blocks = [n for n in around if not isinstance(named[n], nn.Sequential)]
    return sum(any(f"{name}.".startswith(f"{n}.") for name in coarser) for n in blocks)


def _record(prepared: PreparedModel, image: Tensor) -> tuple[list[_Output], Any]:
    outputs: list[_Output] = []

    def record(name: str, child: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            # Layers that the model itself runs without gradients serve methods that need none.
            if tensor is not None and (tensor.requires_grad or not torch.is_grad_enabled()):
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
    # Containers, in-place and identity layers return the tensor of an earlier module. The first module computed the
    # tensor; the last gives its name and its order, since a residual block may add in place after its shortcut ran.
    # Outputs of pooling and dropout are no features.
    groups: dict[int, list[_Output]] = {}
    for output in outputs:
        groups.setdefault(id(output.tensor), []).append(output)
        if not isinstance(output.module, nn.Identity):
            groups[id(output.tensor)] = groups.pop(id(output.tensor))  # to the end
    named = [[f for f in group if not isinstance(f.module, nn.Identity)] or group for group in groups.values()]
    return [group[-1] for group in named if not isinstance(group[0].module, NO_FEATURE)]


def _spatial(
    prepared: PreparedModel, outputs: list[_Output], image: Tensor, strict: bool
) -> list[tuple[_Output, Grid]]:
    spatial = []
    for output in outputs:
        prefix = prefix_tokens(prepared.module, output.name)
        grid = find_grid(output.tensor.shape, image.shape[2:], prefix, strict)
        if grid is None or math.prod(grid.shape) == 1:
            continue
        if not _in_heads(prepared.module, output.name) if grid.layout == "first" else _on_stream(output.module):
            spatial.append((output, grid))
    tokens = [output.tensor.shape[-1] for output, grid in spatial if grid.layout == "tokens"]
    return [(f, grid) for f, grid in spatial if grid.layout != "tokens" or f.tensor.shape[-1] == tokens[-1]]


def _in_heads(module: nn.Module, name: str) -> bool:
    """Whether a layer lies inside of attention, where tensors (B, heads, T, d) look like channels of a grid."""
    parts, named = name.split("."), named_layers(module)
    around = [named[".".join(parts[:k])] for k in range(1, len(parts))]
    return any(hasattr(m, "num_heads") and any(hasattr(m, query) for query in QUERIES) for m in around)


def _on_stream(module: nn.Module) -> bool:
    # Blocks and normalization layers return the stream of tokens; single linear layers compute queries, keys and
    # values. `_spatial` leaves out tokens of another width than the last, which are inside a block.
    weight = getattr(module, "weight", None)
    return any(module.children()) or (isinstance(weight, Tensor) and weight.ndim == 1)


def _gradients(score: Tensor, tensors: list[Tensor]) -> Sequence[Tensor | None]:
    able = [tensor for tensor in tensors if tensor.requires_grad]
    if not able or not score.requires_grad:
        return [None] * len(tensors)
    gradients = iter(torch.autograd.grad(score.sum(), able, allow_unused=True))
    return [next(gradients) if tensor.requires_grad else None for tensor in tensors]
