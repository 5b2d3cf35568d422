"""Methods and metrics on photographs, with a real network: the layout of the thesis' tables 2.1 to 2.4.

Several views of a photograph are not independent: intervals draw photographs, not views.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training import attribution as a
from interpretable_training import metrics as m
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.evaluation import Table, evaluate
from interpretable_training.files import csv_text, save_picture, write_whole
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.recipes.evidence.lite0 import lite0
from interpretable_training.recipes.evidence.photographs import MEAN, STD, photograph, sure_views, whole_view
from interpretable_training.recipes.recipe import stored_numbers
from interpretable_training.visual import denormalize, draw_sheet, overlay

LAYER = "blocks"  # 320 channels of 7 x 7 cells, for every CAM
SHOWN = ("cat", "coffee", "rocket", "motorcycle", "flower", "china")
BLACK: dict[str, Any] = {"mean": MEAN, "std": STD}


def photograph_cams() -> dict[str, Attribution]:
    """Return the methods that weigh the channels of a layer."""
    return {
        "gradcam": a.GradCAM(layer=LAYER),
        "gradcamplusplus": a.GradCAMPlusPlus(layer=LAYER),
        "smoothgradcamplusplus": a.SmoothGradCAMPlusPlus(layer=LAYER),
        "xgradcam": a.XGradCAM(layer=LAYER),
        "hirescam": a.HiResCAM(layer=LAYER),
        "layercam": a.LayerCAM(layer=LAYER),
        "eigencam": a.EigenCAM(layer=LAYER),
        "scorecam": a.ScoreCAM(layer=LAYER, **BLACK),
        "ablationcam": a.AblationCAM(layer=LAYER),
        "opticam": a.OptiCAM(layer=LAYER, **BLACK),
    }


def pixel_and_mask_methods() -> dict[str, Attribution]:
    """Return the main methods that need the gradient of the pixels, or masks."""
    return {
        "gradient": a.Gradient(),
        "inputxgradient": a.InputXGradient(**BLACK),
        "smoothgrad": a.SmoothGrad(n=20),
        "integratedgradients": a.IntegratedGradients(),
        "guidedbackprop": a.GuidedBackprop(),
        "fullgrad": a.FullGrad(),
        "rise": a.RISE(n=500, **BLACK),
        "occlusion": a.Occlusion(patch=32, stride=16),
    }


def photograph_methods() -> dict[str, Attribution]:
    """Return all methods of the table."""
    return {**photograph_cams(), **pixel_and_mask_methods()}


def thesis_metrics() -> dict[str, ImageMetric]:
    """Return the metrics of the thesis' tables, and ADCC."""
    return {
        "average_drop": m.AverageDrop(),
        "average_gain": m.AverageGain(),
        "average_increase": m.AverageIncrease(),
        "insertion": m.Insertion(steps=14),
        "deletion": m.Deletion(steps=14),
        "adcc": m.ADCC(),
    }


def photograph_table(folder: Path, n: int = 200) -> tuple[Table, list[str]]:
    """Measure what is missing; return the table with intervals by photograph, and the photograph of each view."""
    network = lite0()
    images, target, names = sure_views(network, n)
    options: dict[str, Any] = {"target": "label", "mean": MEAN, "std": STD, "cache": folder / "faithfulness"}
    views = DataLoader(TensorDataset(images, target), 4)  # what an interruption loses
    table = evaluate(network, photograph_methods(), thesis_metrics(), views, **options)
    clusters = torch.tensor([sorted(set(names)).index(name) for name in names])
    return replace(table, images=clusters, _cells={}), names


def seconds_per_map(network: nn.Module, method: Attribution, images: Tensor, target: Tensor) -> dict[str, float]:
    """Return the seconds of a map, and the forward passes that take as long."""
    with torch.no_grad():
        network(images)  # warm
        start = perf_counter()
        network(images)
        forward = perf_counter() - start
    start = perf_counter()
    a.explain({"method": method}, network, images, target)
    seconds = perf_counter() - start
    return {"seconds": seconds / len(images), "F": seconds / forward}


def map_costs(folder: Path) -> dict[str, dict[str, float]]:
    """Return the cost of a map of each method, on eight views."""
    network = lite0()
    images, target, _ = sure_views(network, 8, per_photograph=2)
    return {
        name: stored_numbers(folder / f"cost-{name}.json", partial(seconds_per_map, network, method, images, target))
        for name, method in photograph_methods().items()
    }


def draw_photographs(file: Path, names: tuple[str, ...] = SHOWN) -> None:
    """Draw maps of all methods on photographs."""
    network = lite0()
    images = torch.stack([whole_view(photograph(name)) for name in names])
    target = network(images).argmax(1)
    maps = a.explain(photograph_methods(), network, images, target)
    pictures = denormalize(images, MEAN, STD)
    rows = {"photograph": overlay(pictures, torch.zeros(images[:, 0].shape), strength=0.0)}
    rows |= {name: overlay(pictures, S) for name, S in maps.items()}
    save_picture(draw_sheet(rows, list(names), blocks=2), file)


def thesis_statements(table: Table) -> list[tuple[str, str]]:
    """Return statements of the thesis and what this table says of each: holds, does not hold, undecided."""
    cams = [name for name in table.values if name in photograph_cams()]
    best, against_gradcam = partial(verdict_on_best, table), partial(verdict_on, table)
    said = [
        ("Opti-CAM has a lower average drop than Grad-CAM", against_gradcam("opticam", "average_drop", -1)),
        ("Opti-CAM has a higher average gain than Grad-CAM", against_gradcam("opticam", "average_gain", 1)),
        ("Opti-CAM has the lowest average drop of all CAMs", best(cams, "opticam", "average_drop", -1)),
        ("Opti-CAM has the highest average gain of all CAMs", best(cams, "opticam", "average_gain", 1)),
    ]
    with_fake = [*cams, "fakecam"]
    return [
        *said,
        ("Fake-CAM has the lowest average drop", best(with_fake, "fakecam", "average_drop", -1)),
        (
            "Fake-CAM has the highest average increase",
            best(with_fake, "fakecam", "average_increase", 1),
        ),
        (
            "Fake-CAM has the lowest average gain of all CAMs",
            best(with_fake, "fakecam", "average_gain", -1),
        ),
        ("Score-CAM has a lower average drop than Grad-CAM", against_gradcam("scorecam", "average_drop", -1)),
        ("Opti-CAM has a lower insertion than Grad-CAM", against_gradcam("opticam", "insertion", -1)),
    ]


def verdict_on(table: Table, method: str, metric: str, sign: int) -> str:
    """Return whether the difference from the reference has the sign, by its interval."""
    cell = table[method, metric]
    low, high = sorted((sign * cell.difference_low, sign * cell.difference_high))
    numbers = f"{cell.difference:+.1f} [{cell.difference_low:+.1f}, {cell.difference_high:+.1f}]"
    return f"{'holds' if low > 0 else 'does not hold' if high < 0 else 'undecided'}: {numbers}"


def verdict_on_best(table: Table, methods: list[str], method: str, metric: str, sign: int) -> str:
    """Return whether a method is the best of all; its rivals' differences from it decide."""
    against = replace(table, reference=method, _cells={})
    verdicts = [verdict_on(against, name, metric, -sign) for name in methods if name != method]
    better = [name for name, verdict in zip((n for n in methods if n != method), verdicts) if "not hold" in verdict]
    unclear = [name for name, v in zip((n for n in methods if n != method), verdicts) if v.startswith("undecided")]
    if better:
        return f"does not hold: {', '.join(better)}"
    return f"undecided: {', '.join(unclear)}" if unclear else "holds"


def view_rows(table: Table, names: list[str]) -> list[list[Any]]:
    """Return the numbers of each view."""
    rows: list[list[Any]] = [["view", "photograph", "class", "method", *table.metrics]]
    for method in table.values:
        numbers = zip(*(table.per_image(method, metric).tolist() for metric in table.metrics))
        views = enumerate(zip(names, table.classes.tolist(), numbers))
        rows += [[i, name, c, method, *(f"{value:.5g}" for value in own)] for i, (name, c, own) in views]
    return rows


def faithfulness_tables(folder: Path, output: Path) -> dict[str, list[list[str]]]:
    """Compute what is missing, write the numbers of each view and a picture, and return the rows of the tables."""
    table, names = photograph_table(folder)
    if dist.is_initialized() and dist.get_rank():
        return {}
    cost = map_costs(folder)
    write_whole(output / "faithfulness_views.csv", csv_text(view_rows(table, names)))
    write_whole(output / "faithfulness_passports.json", json.dumps(table.passports, indent=1) + "\n")
    draw_photographs(output / "photographs.jpg")
    rows = [["method", *table.metrics, "seconds", "F"]]
    for name in table.values:
        cells = [table[name, metric] for metric in table.metrics]
        figures = [f"{cell.mean:.3g} [{cell.low:.3g}, {cell.high:.3g}]" for cell in cells]
        rows.append([name, *figures, *(f"{cost[name][key]:.3g}" if name in cost else "" for key in ("seconds", "F"))])
    said = [["statement", "here"], *([text, verdict] for text, verdict in thesis_statements(table))]
    return {"faithfulness": rows, "statements": said}
