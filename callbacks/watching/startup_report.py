"""What is said before the first look: the layers, whether a gradient reaches them, and what a look will cost."""

import time
from collections.abc import Mapping

import lightning as L
import torch
from PIL import Image
from torch import Tensor

from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.auto_layer import candidates
from interpretable_training.attribution.core.base import GradientCAM
from interpretable_training.attribution.core.map_operations import degenerate
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explaining import explain_images
from interpretable_training.report.journal import png
from interpretable_training.visual.overlay import overlay

FEW = 4  # images are tried


def probe(
    trainer: L.Trainer, scene: RunContext, methods: Mapping[str, Attribution], target: str | int, n: int
) -> list[tuple[str, str]]:
    """Lines of the table at the start, found by explaining a few images."""
    picked = next(iter(scene.batches(trainer, FEW)))[1]
    n = min(n, scene.size(trainer))
    lines = [("layer", text) for text in layers(scene, methods, picked.images)]
    target = "pred" if target in ("label", "both") and picked.target is None else target
    options = scene.options.output, scene.multilabel
    explain_images(methods, scene.network, picked.images, picked.target, target, *options)  # the first time is slower
    start = time.perf_counter()
    found = explain_images(methods, scene.network, picked.images, picked.target, target, *options)
    seconds = (time.perf_counter() - start) * n / len(picked.images)
    maps = [(name, S) for view in found.maps.values() for name, S in view.items()]
    flat = {name: int(degenerate(S).sum()) for name, S in maps}
    lines += [("maps", f"{name}: {k} of {len(found.ids)} are constant") for name, k in flat.items() if k]
    lines += [("failed", str(why)) for why in found.errors.values()]
    cost = f"about {seconds:.2g} s for {n} images"
    if maps:
        size = picture_size(scene, found.images[:1], maps[0][1][:1]) * n * len(maps) / 1e6
        cost += f", {size:.2g} MB of pictures"
    return [*lines, ("a look", cost)]


def layers(scene: RunContext, methods: Mapping[str, Attribution], images: Tensor) -> list[str]:
    """The layers of the methods that have some, with their grids."""
    cams = {name: cam for name, cam in methods.items() if isinstance(cam, GradientCAM)}
    if not cams:
        return []
    with prepare_model(scene.network, scene.options.output) as prepared:
        ready = prepare(prepared, images[:1])
        found = {c.name: c for c in candidates(prepared, ready)}
        by_layer: dict[str, list[str]] = {}
        for name, cam in cams.items():
            for layer in cam.layers(prepared, ready, None):
                by_layer.setdefault(layer, []).append(name)
    lines = []
    for layer, names in by_layer.items():
        grid = found.get(layer)
        shape = "" if grid is None else f", {' x '.join(map(str, grid.grid.shape))}"
        lost = "" if grid is None or grid.reaches else ", but no gradient reaches it"
        lines.append(f"{layer} ({', '.join(names)}{shape}{lost})")
    return lines


def picture_size(scene: RunContext, images: Tensor, saliency: Tensor) -> int:
    """Bytes of one overlay."""
    with torch.no_grad():
        return len(png(Image.fromarray(overlay(scene.colors.pictures(images), saliency)[0].numpy())))
