"""The start-up report: network, images, layers, and the cost of an explanation step."""

import time
from collections.abc import Mapping, Sequence

import lightning as L
import torch
from PIL import Image
from torch import Tensor

from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.auto_layer import candidates
from interpretable_training.attribution.core.base import GradientCAM
from interpretable_training.attribution.core.map_operations import degenerate
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model
from interpretable_training.batches.read import Picked
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explanation_memo import explain_images
from interpretable_training.report.journal import png
from interpretable_training.visual.overlay import overlay

PROBED = 4  # images
Line = tuple[str, str]  # name and text


def probe(
    trainer: L.Trainer,
    context: RunContext,
    methods: Mapping[str, Attribution],
    target: str | int,
    n: int,
    pictures: int = 0,
) -> tuple[list[Line], float]:
    """Explain a few images, and return lines about layers, failures and costs, and the seconds of an explanation step.

    Args:
        trainer: the trainer.
        context: what is explained.
        methods: name -> method.
        target: the class that is explained.
        n: how many images a step explains, further ones included.
        pictures: how many of them it draws.
    """
    picked = next(iter(context.batches(trainer, PROBED)))[1]
    n = min(n, context.size(trainer))
    lines = [("layer", text) for text in layers(context, methods, picked)]
    explain_images(methods, context.reading, picked, target)  # the first run is slower
    start = time.perf_counter()
    explained = explain_images(methods, context.reading, picked, target)
    seconds = (time.perf_counter() - start) * n / len(picked.images)
    maps = [(name, S) for view in explained.maps.values() for name, S in view.items()]
    flat = {name: int(degenerate(S).sum()) for name, S in maps}
    lines += [("maps", f"{name}: {k} of {len(explained.ids)} are constant") for name, k in flat.items() if k]
    lines += [("failed", str(why)) for why in explained.errors.values()]
    size = 0.0
    if maps and pictures:
        drawn, one = pictures * (1 + len(maps)), (context, explained.images[:1], maps[0][1][:1])
        picture_size(*one)  # the first picture is slower
        start = time.perf_counter()
        size = picture_size(*one) * pictures * len(maps) / 1e6
        seconds += (time.perf_counter() - start) * drawn
    cost = f"about {seconds:.2g} s for {n} images"
    cost += f", {size:.2g} MB of pictures" if size else ""
    return [*lines, ("an explanation step", cost)], seconds


def layers(context: RunContext, methods: Mapping[str, Attribution], picked: Picked) -> list[str]:
    """Return the layers of the methods that have layers, with their grids."""
    cams = {name: cam for name, cam in methods.items() if isinstance(cam, GradientCAM)}
    if not cams:
        return []
    reading = context.reading
    with prepare_model(reading.network, reading.of_batches if reading.together else reading.output) as prepared:
        row = picked.rows(slice(1))
        prepared = prepared if reading.together else reading.bind(prepared, row)[0]
        ready = prepare(prepared, row.images)
        grids = {c.name: c for c in candidates(prepared, ready)}
        by_layer: dict[str, list[str]] = {}
        for name, cam in cams.items():
            for layer in cam.layers(prepared, ready, None):
                by_layer.setdefault(layer, []).append(name)
    lines = []
    for layer, names in by_layer.items():
        grid = grids.get(layer)
        shape = "" if grid is None else f", {' x '.join(map(str, grid.grid.shape))}"
        warning = "" if grid is None or grid.reaches else ", but no gradient reaches it"
        lines.append(f"{layer} ({', '.join(names)}{shape}{warning})")
    return lines


def picture_size(context: RunContext, images: Tensor, saliency: Tensor) -> int:
    """Return the bytes of one overlay."""
    with torch.no_grad():
        return len(png(Image.fromarray(overlay(context.colors.pictures(images), saliency)[0].numpy())))


def context_lines(context: RunContext, pl_module: L.LightningModule) -> list[Line]:
    """Return network, batches, images, classes and colors, one line each."""
    name = context.network_name or "the LightningModule itself"
    return [
        ("network", f"{name} ({type(context.network).__name__}) of {type(pl_module).__name__}"),
        *context.facts,
        ("batches", str(context.first)),
        ("images", context.panel.source),
        ("classes", context.class_source),
        ("colors", context.colors.source),
    ]


def number_names(names: Sequence[str]) -> list[str]:
    """Return the names, the second of a kind with a number."""
    return [f"{name} {names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def merge_lines(lines_of: Mapping[str, list[Line]]) -> list[Line]:
    """Return the lines that all callbacks share, then the others with the name of their callback."""
    lists = [lines for lines in lines_of.values() if lines]
    shared = [line for line in lists[0] if all(line in lines for lines in lists)] if lists else []
    return shared + [(f"{name}: {a}", b) for name, lines in lines_of.items() for a, b in lines if (a, b) not in shared]
