"""Find the stages and the head of a backbone, from the modules that run for one image.

A stage ends with the last map of each resolution, but not inside a block. ResNet and ConvNeXt have the points of the
authors' code. The head computes logits from the pooled last stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.core.feature_grids import find_grid
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model

# By the name of the class: the first list whose modules all exist. ResNet: after the stem's pooling and each stage.
# ConvNeXt: inputs of stages 1, 2 and 3 and output of the last, in torchvision and timm.
OFFICIAL: dict[str, list[tuple[str, ...]]] = {
    "ResNet": [("maxpool", "layer1", "layer2", "layer3", "layer4")],
    "ConvNeXt": [
        ("features.0", "features.2", "features.4", "features.7"),
        ("stem", "stages.1.downsample", "stages.2.downsample", "stages.3"),
    ],
}
PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class ModuleRun(NamedTuple):
    """Run of a module, with its first input and its output."""

    name: str
    module: nn.Module
    input: Any
    output: Any


@dataclass(frozen=True)
class Head:
    """Part of a backbone after the pooling.

    Attributes:
        name: Module that computes logits from pooled maps; "" where the backbone's `forward_head` (timm) does.
        cells: Number of pooled cells that it reads as (B, d * cells); 0 where it reads maps (B, d, h, w).
        modules: Names of all modules that run in it.
    """

    name: str
    cells: int
    modules: frozenset[str] = frozenset()

    def __call__(self, backbone: nn.Module, q: Tensor) -> Tensor:
        """Return logits of q (B, d), those of a map that is q everywhere."""
        if not self.name:
            return backbone.forward_head(q[:, :, None, None])  # type: ignore[operator]
        module = backbone.get_submodule(self.name)
        if self.cells:
            return module(q if self.cells == 1 else q[:, :, None].expand(-1, -1, self.cells).flatten(1))
        return module(q[:, :, None, None]).flatten(1)


@dataclass(frozen=True)
class Anatomy:
    """Stages of a backbone with their channels, its head, and its number of classes.

    Attributes:
        stages: Names of the modules that return the maps of each stage.
        taps: Names of the last modules that return the same maps.
        runs: Number of runs of each tap in one pass.
        dims: Channels of each stage.
        head: Part after the pooling.
        num_classes: Number of logits.
    """

    stages: tuple[str, ...]
    taps: tuple[str, ...]
    runs: tuple[int, ...]
    dims: tuple[int, ...]
    head: Head
    num_classes: int


def dissect(
    backbone: nn.Module,
    stages: Sequence[str] | None = None,
    head: str | nn.Module | None = None,
    image_size: int | None = None,
) -> Anatomy:
    """Return stages and head from the modules that run for one image; the backbone does not change."""
    with prepare_model(backbone) as prepared, torch.no_grad():
        images = prepare(prepared, _probe_image(backbone, image_size))
        ran, logits = _run_modules(backbone, images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"expected a backbone that returns logits (B, N), got {got} from {type(backbone).__name__}; "
                "build it with its classifier."
            )
        maps = _feature_maps(ran, images)
        names = _find_stages(backbone, maps, images) if stages is None else _check_stages(backbone, stages, maps, ran)
        made = {r.name: r for r in ran}
        last = made[names[-1]]
        part = _find_head(backbone, head, ran, logits, last)
        _check_pooling(backbone, part, last, made[part.name].input if part.name else None, logits)
        modules, _ = _run_modules(backbone, last.output.mean((2, 3)), part)
        _check_linear(backbone, modules)
        part = Head(part.name, part.cells, frozenset(r.name for r in modules))
    taps = tuple(next(r.name for r in reversed(ran) if r.output is made[name].output) for name in names)
    runs = tuple(sum(r.name == tap for r in ran) for tap in taps)
    dims = tuple(made[name].output.shape[1] for name in names)
    return Anatomy(names, taps, runs, dims, part, logits.shape[1])


def _probe_image(backbone: nn.Module, image_size: int | None) -> Tensor:
    """Return an image (1, C, H, W) in the size of the backbone's configuration, by default 224 x 224."""
    config = getattr(backbone, "pretrained_cfg", None)
    size = (config.get("input_size") if isinstance(config, dict) else None) or (3, 224, 224)
    side = size[1:] if image_size is None else (image_size, image_size)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise ValueError(
            f"expected a backbone with stages of feature maps, got {type(backbone).__name__} without any convolution; "
            "pass a convolutional network."
        )
    weight = convs[0].weight
    generator = None if weight.is_meta else torch.Generator().manual_seed(0)
    shape = (1, weight.shape[1] * convs[0].groups, *side)
    image = (
        torch.empty(shape, device="meta") if weight.is_meta else torch.randn(shape, generator=generator, device="cpu")
    )
    return image.to(weight.device, weight.dtype)


def _run_modules(backbone: nn.Module, x: Tensor, head: Head | None = None) -> tuple[list[ModuleRun], Any]:
    """Return the modules in the order in which they finish, and the output of the backbone or of its head."""
    ran: list[ModuleRun] = []

    def keep(name: str) -> Any:
        return lambda module, args, output: ran.append(ModuleRun(name, module, args[0] if args else None, output))

    handles = [module.register_forward_hook(keep(name)) for name, module in backbone.named_modules() if name]
    try:
        return ran, backbone(x) if head is None else head(backbone, x)
    except Exception as error:
        what = f"images {tuple(x.shape)}" if head is None else f"pooled features {tuple(x.shape)} in its head"
        raise ValueError(
            f"expected {type(backbone).__name__} to accept {what}, got {type(error).__name__}: {error}; "
            "pass image_size= with the side of its images, and stages= and head= with names of its modules."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _feature_maps(ran: Sequence[ModuleRun], images: Tensor) -> dict[str, ModuleRun]:
    """Return the modules that return feature maps (B, d, h, w) of more than one cell."""
    maps = {}
    for r in ran:
        shape = r.output.shape if isinstance(r.output, Tensor) and r.output.ndim == 4 else (0,)
        grid = find_grid(shape, images.shape[2:], strict=False)
        if grid is not None and grid.layout == "first" and math.prod(grid.shape) > 1:
            maps[r.name] = r
    return maps


def _find_stages(backbone: nn.Module, maps: dict[str, ModuleRun], images: Tensor) -> tuple[str, ...]:
    """Return the names of the modules whose output ends a stage, in the order in which they run."""
    for prefix, module in backbone.named_modules():
        for names in OFFICIAL.get(type(module).__name__, []):
            full = tuple(f"{prefix}.{name}" if prefix else name for name in names)
            if all(name in maps for name in full):
                return full
    ends: list[ModuleRun] = []
    for r in reversed(list(maps.values())):
        larger = not ends or _cells(r) > 2 * _cells(ends[-1])  # convolutions without padding remove only a border
        if (
            larger
            and r.output.shape[1] > images.shape[1]
            and not isinstance(r.module, PASSING)
            and _ends_block(r, maps)
        ):
            ends.append(r)
    if not ends:
        raise ValueError(
            f"expected a backbone with stages, modules that return feature maps (B, d, h, w) of more than one cell, "
            f"got {type(backbone).__name__} without any; pass a convolutional network, or stages= with their names."
        )
    return tuple(r.name for r in reversed(ends))


def _cells(r: ModuleRun) -> int:
    """Return the number of cells of the maps of a module."""
    return r.output.shape[2] * r.output.shape[3]


def _ends_block(r: ModuleRun, maps: dict[str, ModuleRun]) -> bool:
    """Whether no block that contains the module continues with another resolution; plain sequences are not blocks."""
    parts = r.name.split(".")
    around = [maps[name] for name in (".".join(parts[:i]) for i in range(1, len(parts))) if name in maps]
    return all(type(a.module) is nn.Sequential or a.output.shape[2:] == r.output.shape[2:] for a in around)


def _check_stages(
    backbone: nn.Module, stages: Sequence[str], maps: dict[str, ModuleRun], ran: Sequence[ModuleRun]
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


def _find_head(
    backbone: nn.Module, given: str | nn.Module | None, ran: Sequence[ModuleRun], logits: Tensor, last: ModuleRun
) -> Head:
    """Return the head: the given one, timm's `forward_head`, or the module that returns the logits."""
    if given is None and hasattr(backbone, "forward_head"):
        return Head("", 0)
    made = [r for r in ran if r.output is logits and not f"{last.name}.".startswith(f"{r.name}.")]
    if given is not None:
        made = [r for r in ran if given in (r.name, r.module)]
    if not made or not isinstance(made[-1].input, Tensor) or made[-1].input.ndim not in (2, 4):
        got = "found none" if given is None else f"got {given!r}"
        raise ValueError(
            f"expected a head, a module of {type(backbone).__name__} that makes its logits of pooled features (B, d) "
            f"or maps (B, d, h, w), {got}; pass head= with the name of one that runs."
        )
    received, d = made[-1].input, last.output.shape[1]
    cells, rest = divmod(received.shape[1], d)
    if rest or (received.ndim == 4 and cells != 1) or round(cells**0.5) ** 2 != cells or not cells:
        raise ValueError(
            f"expected a head that reads the {d} channels of the last stage {last.name!r}, but {made[-1].name!r} reads "
            f"{tuple(received.shape[1:])}; pass stages= that end with the map that is pooled, and head=."
        )
    return Head(made[-1].name, cells if received.ndim == 2 else 0)


def _check_pooling(backbone: nn.Module, head: Head, last: ModuleRun, received: Any, logits: Tensor) -> None:
    """Raise ValueError if the head does not read the averages of the last stage."""
    why = "other features"
    if head.name:
        size = received.shape[2:] if received.ndim == 4 else (round(head.cells**0.5),) * 2
        one, other = F.adaptive_avg_pool2d(last.output, tuple(size)).flatten(1), received.flatten(1)
    else:
        one, other = logits[:0], logits
        try:
            one = backbone.forward_head(last.output)  # type: ignore[operator]
        except Exception as error:  # heads raise many types for maps of another stage
            why = f"{type(error).__name__}: {error}"
    if one.shape != other.shape or not (one.is_meta or torch.allclose(one, other, rtol=1e-2, atol=1e-3)):
        what = repr(head.name) if head.name else "forward_head"
        raise ValueError(
            f"expected the head {what} of {type(backbone).__name__} to read the averages of the last stage "
            f"{last.name!r}, got {why}; pass stages= that end with the map that is pooled, and head= with the name of "
            "what follows the pooling."
        )


def _check_linear(backbone: nn.Module, ran: Sequence[ModuleRun]) -> None:
    """Raise ValueError if the last step of the head is not linear."""
    weighted = [r.module for r in ran if next(r.module.parameters(recurse=False), None) is not None]
    module = weighted[-1] if weighted else None
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        return
    got = "no learned module" if module is None else type(module).__name__
    raise ValueError(
        f"expected a head of {type(backbone).__name__} that ends in a linear classifier, nn.Linear or a convolution of "
        f"1 x 1, got {got}; pass head= with the name of its classifier."
    )
