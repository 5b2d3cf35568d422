"""Find the stages and the head of a backbone, from the modules that run for one image.

A stage ends with the last map of each resolution, but not inside a block. ResNet and ConvNeXt have the points of the
authors' code. Networks of one resolution, such as ViT, have four evenly spaced blocks, the last of them behind the norm
that follows it. The head computes logits from the pooled last stage.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.feature_grids import MOST_PREFIX_TOKENS, Grid, find_grid, first_tensor
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model
from interpretable_training.attribution.core.targets import pick_logits

from .heads import Head, find_head
from .taps import ModuleRun, run_modules

# By the name of the class: the first list whose modules all exist. ResNet: after the stem's pooling and each stage.
# ConvNeXt: inputs of stages 1, 2 and 3 and output of the last, in torchvision and timm.
OFFICIAL: dict[str, list[tuple[str, ...]]] = {
    "ResNet": [("maxpool", "layer1", "layer2", "layer3", "layer4")],
    "ConvNeXt": [
        ("features.0", "features.2", "features.4", "features.7"),
        ("stem", "stages.1.downsample", "stages.2.downsample", "stages.3"),
    ],
}
NUMBERED = re.compile(r"(^|[._])\d+$")  # names of blocks: "blocks.3", "encoder_layer_3"
PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class StageMap(NamedTuple):
    """Features of a module: its run, the grid of its output, and the output as maps F (B, d, h, w)."""

    run: ModuleRun
    grid: Grid
    F: Tensor


@dataclass(frozen=True)
class Anatomy:
    """Stages of a backbone with their channels, its head, and its number of classes.

    Attributes:
        stages: Names of the modules that return the maps of each stage.
        taps: Names of the last modules that return the same maps.
        runs: Number of runs of each tap in one pass.
        dims: Channels of each stage.
        grids: Layout of each stage, and its grid for images of `size`.
        size: Height and width of the images that were run.
        head: Part after the pooling; None for a new linear head.
        pooling: "gap" where the backbone averages the last stage, otherwise "own".
        num_classes: Number of logits.
    """

    stages: tuple[str, ...]
    taps: tuple[str, ...]
    runs: tuple[int, ...]
    dims: tuple[int, ...]
    grids: tuple[Grid, ...]
    size: tuple[int, ...]
    head: Head | None
    pooling: str
    num_classes: int


def dissect(
    backbone: nn.Module,
    stages: Sequence[str] | None = None,
    head: str | nn.Module | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Anatomy:
    """Return stages and head from the modules that run for one image; the backbone does not change.

    With `num_classes` the backbone's head is not used, and it needs none.
    """
    with prepare_model(backbone) as prepared, torch.no_grad():
        images = prepare(prepared, _probe_image(backbone, image_size))
        ran, output = run_modules(backbone, images)
        logits = _logits(backbone, output) if num_classes is None else images.new_empty(1, num_classes)
        maps = _spatial(ran, images.shape[2:])
        if _channels_first(maps):
            maps = {name: m for name, m in maps.items() if m.grid.layout == "first" and m.run.output is m.F}
        names = _find_stages(backbone, maps, images) if stages is None else _check_stages(backbone, stages, maps, ran)
        chosen = [maps[name] for name in names]
        last, part, pooling = chosen[-1], None, "own"
        if num_classes is None:
            part, pooling = find_head(backbone, head, ran, logits, last.run, last.F, last.grid.layout)
    taps = tuple(next(r.name for r in reversed(ran) if r.tensor is m.run.tensor) for m in chosen)
    runs = tuple(sum(r.name == tap for r in ran) for tap in taps)
    dims, grids = tuple(m.F.shape[1] for m in chosen), tuple(m.grid for m in chosen)
    return Anatomy(names, taps, runs, dims, grids, tuple(images.shape[2:]), part, pooling, logits.shape[1])


def as_maps(output: Any, grid: Grid, size: Sequence[int], probed: Sequence[int]) -> Tensor | None:
    """Return the output of a stage as maps (B, d, h, w), for images of `size`; its `grid` is for those `probed`."""
    A = first_tensor(output)
    if A is not None and grid.layout == "tokens" and tuple(size) != tuple(probed):
        other = find_grid(A.shape, size, grid.prefix)
        if other is None:
            raise ValueError(
                f"expected more than one patch in a grid, behind {grid.prefix} prefix tokens, got {A.shape[1]} tokens "
                f"for images {size[0]} x {size[1]}; pass images of whole patches."
            )
        grid = other
    return None if A is None else grid.read(A)


def _logits(backbone: nn.Module, output: Any) -> Tensor:
    """Return the logits (B, N) in the output of a backbone."""
    try:
        logits: Any = pick_logits(output)
    except (TypeError, ValueError):
        logits = output
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"expected a backbone that returns logits (B, N), got {got} from {type(backbone).__name__}; "
            "build it with its classifier, or pass num_classes= for a new linear head."
        )
    return logits


def _probe_image(backbone: nn.Module, image_size: int | None) -> Tensor:
    """Return an image (1, C, H, W) in the size of the backbone's configuration, by default 224 x 224."""
    sizes = [_configured_size(backbone)] if image_size is None else [image_size]
    side = (sizes[0], sizes[0]) if isinstance(sizes[0], int) else tuple(sizes[0])
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise ValueError(
            f"expected a backbone with stages of feature maps, got {type(backbone).__name__} without any convolution; "
            "pass a CNN or a transformer."
        )
    weight = convs[0].weight
    generator = None if weight.is_meta else torch.Generator().manual_seed(0)
    shape = (1, weight.shape[1] * convs[0].groups, *side)
    image = (
        torch.empty(shape, device="meta") if weight.is_meta else torch.randn(shape, generator=generator, device="cpu")
    )
    return image.to(weight.device, weight.dtype)


def _configured_size(backbone: nn.Module) -> Any:
    """Return the size of images that a backbone is made for, as an int or as height and width."""
    for module in backbone.modules():
        for holder in (module, getattr(module, "config", None)):
            for name in ("img_size", "image_size"):
                size = getattr(holder, name, None)
                if (isinstance(size, int) and size > 1) or (isinstance(size, (tuple, list)) and len(size) == 2):
                    return size
    config = getattr(backbone, "pretrained_cfg", None)
    return ((config.get("input_size") if isinstance(config, dict) else None) or (3, 224, 224))[1:]


def _spatial(ran: Sequence[ModuleRun], size: Sequence[int]) -> dict[str, StageMap]:
    """Return the modules that return features of more than one cell, in any layout, except those inside a pooling."""
    maps: dict[str, StageMap] = {}
    pools = [r.name for r in ran if _pools(r, size)]
    grids: list[tuple[int, ...]] = []
    for r in ran:
        A = r.tensor
        if A is None or A.ndim not in (3, 4) or len(A) != 1 or (A.ndim == 3 and A.shape[2] == 1):
            continue
        grid = _grid(A, size, grids)
        learned = any(True for _ in r.module.parameters())  # not the heads of attention (B, heads, T, d)
        if grid is not None and learned and grid.layout != "tokens" and grid.shape not in grids:
            grids.insert(0, grid.shape)
        inside = any(f"{r.name}.".startswith(f"{name}.") for name in pools)
        if grid is not None and math.prod(grid.shape) > 1 and not inside:
            maps[r.name] = StageMap(r, grid, grid.read(A))
    return maps


def _grid(A: Tensor, size: Sequence[int], grids: Sequence[tuple[int, ...]]) -> Grid | None:
    """Return the grid of features: for tokens one of the `grids` of maps behind the fewest prefix tokens."""
    if A.ndim == 4:
        return find_grid(A.shape, size, strict=False)
    known = sorted((A.shape[1] - math.prod(g), g) for g in grids)
    prefix, shape = next(((p, g) for p, g in known if 0 <= p <= MOST_PREFIX_TOKENS), (0, None))
    return find_grid(A.shape, size, 0) if shape is None else Grid("tokens", shape, prefix)


def _pools(r: ModuleRun, size: Sequence[int]) -> bool:
    """Whether a module turns features of many cells into one vector; networks in a wrapper read images instead."""
    x, y = r.input, r.tensor
    if not isinstance(x, Tensor) or y is None or x.ndim not in (3, 4) or x.shape[2:] == tuple(size):
        return False
    return y.ndim == 2 or (y.ndim == 3 and y.shape[1] == 1 and x.ndim == 3)


def _channels_first(maps: dict[str, StageMap]) -> bool:
    """Whether the last features of a network are maps (B, d, h, w), as in a CNN."""
    learned = [m for m in maps.values() if any(True for _ in m.run.module.parameters())]
    return not learned or learned[-1].grid.layout == "first"


def _find_stages(backbone: nn.Module, maps: dict[str, StageMap], images: Tensor) -> tuple[str, ...]:
    """Return the names of the modules whose output ends a stage, in the order in which they run."""
    for prefix, module in backbone.named_modules():
        for names in OFFICIAL.get(type(module).__name__, []):
            full = tuple(f"{prefix}.{name}" if prefix else name for name in names)
            if all(name in maps for name in full):
                return full
    ends: list[StageMap] = []
    for m in reversed(list(maps.values())):
        larger = not ends or _cells(m) > 2 * _cells(ends[-1])  # convolutions without padding remove only a border
        if larger and m.F.shape[1] > images.shape[1] and not isinstance(m.run.module, PASSING) and _ends_block(m, maps):
            ends.append(m)
    if not ends:
        raise ValueError(
            "expected a backbone with stages, modules that return maps (B, d, h, w), maps (B, h, w, d) or tokens "
            f"(B, T, d) of more than one cell, got {type(backbone).__name__} without any; pass a network of patches or "
            "convolutions, images of more than one patch, or stages= with their names."
        )
    if len(ends) == 1 and ends[0].grid.layout != "first":
        return _even(maps, ends[0])
    return tuple(m.run.name for m in reversed(ends))


def _even(maps: dict[str, StageMap], last: StageMap, count: int = 4) -> tuple[str, ...]:
    """Return evenly spaced blocks of a network of one resolution, the last one behind its norm."""
    groups: dict[tuple[str, type], list[str]] = {}
    for name, m in maps.items():
        if m.grid.shape == last.grid.shape and m.F.shape[1] == last.F.shape[1]:
            groups.setdefault((name.rpartition(".")[0], type(m.run.module)), []).append(name)
    blocks = max((g for g in groups.values() if all(NUMBERED.search(name) for name in g)), key=len, default=[])
    n = len(blocks)
    chosen = blocks[:-1] if n < count else [blocks[(i + 1) * n // count - 1] for i in range(count - 1)]
    return (*chosen, last.run.name)


def _cells(m: StageMap) -> int:
    """Return the number of cells of the maps of a module."""
    return math.prod(m.grid.shape)


def _ends_block(m: StageMap, maps: dict[str, StageMap]) -> bool:
    """Whether no block that contains the module continues with another resolution; plain sequences are not blocks."""
    parts = m.run.name.split(".")
    around = [maps[name] for name in (".".join(parts[:i]) for i in range(1, len(parts))) if name in maps]
    return all(type(a.run.module) is nn.Sequential or a.grid.shape == m.grid.shape for a in around)


def _check_stages(
    backbone: nn.Module, stages: Sequence[str], maps: dict[str, StageMap], ran: Sequence[ModuleRun]
) -> tuple[str, ...]:
    """Return the given names; raise ValueError where they are not stages in order."""
    if isinstance(stages, str) or not stages:
        raise ValueError(f"expected stages as a list of names, got {stages!r}; for one stage pass [name].")
    for name in stages:
        if name not in maps:
            names = {r.name for r in ran}
            why = "no map of more than one cell" if name in names else "no module that runs"
            raise ValueError(
                f"expected names of modules of {type(backbone).__name__} that return feature maps, got {name!r}, "
                f"which is {why}; closest: {get_close_matches(name, list(maps), cutoff=0.3)}. "
                f"Available: {_outermost(maps)}."
            )
    order = list(maps)
    if sorted(stages, key=order.index) != list(stages) or len(set(stages)) < len(stages):
        raise ValueError(f"expected stages in the order in which they run, each once, got {list(stages)}.")
    return tuple(stages)


def _outermost(maps: dict[str, Any], most: int = 40) -> list[str]:
    """Return the names of the least nested modules."""
    depth = 1
    while depth < 4 and sum(name.count(".") < depth for name in maps) < 4:
        depth += 1
    return [name for name in maps if name.count(".") < depth][:most]
