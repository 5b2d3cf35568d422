"""Measure metrics on maps of known quality, for networks with known evidence: credible ones order maps by quality.

Three scenes: clean shapes among distractors, where the class is read from the object; shapes with marks, where it is
read from the mark; shapes on textures, where it is read from the background. That a network does so is checked by
intervention: the accuracy when only the evidence is exchanged. The quality of a map is the average precision of its
pixels for the pixels of the evidence.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training import attribution as a
from interpretable_training import metrics as m
from interpretable_training.attribution.core.map_operations import blur, normalize
from interpretable_training.evaluation import evaluate
from interpretable_training.files import csv_text, write_whole
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.metrics.core.similarity import ranks
from interpretable_training.recipes.evidence.known_evidence import (
    Scene,
    interventions,
    scene_batch,
    scene_data,
    scene_network,
)
from interpretable_training.recipes.recipe import stored_numbers
from interpretable_training.recipes.repair import mean_and_interval

IMAGES = 24
LAYER = "stage2"


class LogitsTimes(nn.Module):
    """Network whose logits are multiplied: the same order of the classes with other confidence."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.network(images)


def graded(truth: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return maps that are the evidence (B, H, W), and worse ones: blurred, shifted, with noise, and its opposite."""
    T = truth.float()
    noise = rough_noise(T.shape, seed)
    maps = {"evidence": under_gaussian(T, 1.0), "opposite": 1 - T, "noise": noise}
    maps |= {f"blurred by {sigma}": under_gaussian(T, sigma) for sigma in (3, 6, 10)}
    maps |= {f"shifted by {d}": under_gaussian(T.roll((d, d), (1, 2)), 1.0) for d in (4, 8, 16)}
    maps |= {f"{share:.0%} noise": (1 - share) * T + share * noise for share in (0.3, 0.5, 0.7)}
    maps |= {
        f"cells of {cell}": F.interpolate(F.avg_pool2d(T[:, None], cell), T.shape[1:])[:, 0] for cell in (4, 8, 16)
    }
    return {name: normalize(S) for name, S in maps.items()}


def rough_noise(shape: torch.Size, seed: int) -> Tensor:
    """Return random maps as smooth as those of a layer of 8 x 8 cells."""
    cells = torch.rand(shape[0], 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(cells, shape[1:], mode="bilinear")[:, 0]


def under_gaussian(S: Tensor, sigma: float) -> Tensor:
    """Return maps under a Gaussian."""
    kernel = 2 * int(2 * sigma) + 1
    return blur(S[:, None], kernel, sigma, "reflect")[:, 0]


def judged_methods() -> dict[str, a.Attribution]:
    """Return methods of all families, and two that ignore the network."""
    return {
        "gradcam": a.GradCAM(layer=LAYER),
        "gradcamplusplus": a.GradCAMPlusPlus(layer=LAYER),
        "layercam": a.LayerCAM(layer=LAYER),
        "eigencam": a.EigenCAM(layer=LAYER),
        "scorecam": a.ScoreCAM(layer=LAYER),
        "opticam": a.OptiCAM(layer=LAYER, steps=50),
        "gradient": a.Gradient(),
        "smoothgrad": a.SmoothGrad(n=20),
        "integratedgradients": a.IntegratedGradients(),
        "guidedbackprop": a.GuidedBackprop(),
        "rise": a.RISE(n=200),
        "occlusion": a.Occlusion(patch=8, stride=4),
        "fakecam": a.FakeCAM(),
        "random": a.RandomMap(),
    }


def judged_metrics() -> dict[str, ImageMetric]:
    """Return the metrics that are judged, some on several substrates; those that explain again need a method."""
    return {
        "average_drop": m.AverageDrop(),
        "average_gain": m.AverageGain(),
        "average_increase": m.AverageIncrease(),
        "average_drop_in_deletion": m.AverageDropInDeletion(),
        "insertion (blur)": m.Insertion(steps=16),
        "insertion (mean)": m.Insertion(steps=16, substrate="mean"),
        "deletion (mean)": m.Deletion(steps=16),
        "deletion (blur)": m.Deletion(steps=16, substrate="blur"),
        "insertion - deletion": m.InsertionDeletion(steps=16),
        "aopc": m.AOPC(patch=4, steps=16),
        "road": m.ROAD((20, 40, 60, 80)),
        "infidelity": m.Infidelity(n=32),
        "single_deletion": m.SingleDeletion(8),
        "complexity": m.Complexity(),
        "coherency": m.Coherency(),
        "adcc": m.ADCC(),
        "arcc": m.ARCC(),
    }


PARTS = ("confidence", "sparsity", "resolution", "substrate")  # to which a metric should not react
SUBSTRATES = {"insertion (blur)": "insertion (mean)", "deletion (mean)": "deletion (blur)"}
Numbers = dict[str, dict[str, list[float]]]  # map -> metric -> one of each image
IN_DOMAIN = "single_deletion (in domain)"  # of a network that has learned images without a patch
AGAIN = ("coherency", "adcc", "arcc")  # known for maps of methods only


def quality(S: Tensor, truth: Tensor) -> Tensor:
    """Return the average precision of each map's pixels, (B,); equal pixels get in one after the other at random."""
    n = truth[0].numel()
    jitter = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    order = S.flatten(1)[:, jitter].argsort(dim=1, descending=True, stable=True)
    hits = truth.flatten(1)[:, jitter].gather(1, order).double()
    precision = hits.cumsum(1) / torch.arange(1, n + 1)
    return (precision * hits).sum(1) / hits.sum(1).clamp(min=1)


@dataclass(frozen=True, eq=False)
class Drawn(a.RandomMap):
    """Maps that are there already, for the images of one batch."""

    maps: Tensor | None = None

    def attribute(self, prepared: Any, images: Tensor, target: Any) -> Tensor:
        assert self.maps is not None
        return self.maps.to(images)


def measure_maps(
    network: nn.Module, x: Tensor, target: Tensor, truth: Tensor, metrics: dict[str, ImageMetric]
) -> Numbers:
    """Return the numbers of graded maps and of methods, with "quality" among the metrics."""
    explained = a.explain(judged_methods(), network, x, target)
    drawn = graded(truth)
    numbers = measured_numbers(network, x, target, {name: Drawn(maps=S) for name, S in drawn.items()}, metrics)
    numbers |= measured_numbers(network, x, target, judged_methods(), metrics)
    for name, S in {**drawn, **explained}.items():
        numbers[name]["quality"] = quality(normalize(S), truth).tolist()
        for metric in AGAIN if name in drawn else ():
            numbers[name].pop(metric, None)
    return numbers


def measured_numbers(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    methods: Mapping[str, a.Attribution],
    metrics: dict[str, ImageMetric],
) -> Numbers:
    """Return method -> metric -> numbers of the images."""
    options: dict[str, Any] = {"target": "label", "controls": False, "progress": False, "resamples": 1}
    table = evaluate(network, methods, metrics, [(x, target)], **options)
    return {name: {key: table.per_image(name, key).tolist() for key in table.metrics} for name in methods}


def scene_cell(scene: Scene, seed: int, folder: Path) -> dict[str, Any]:
    """Return all numbers of one network, and single deletion of one to which removed patches are nothing new."""
    network, prepared = (scene_network(scene, seed, folder, removed) for removed in (False, True))
    x, target, truth = scene_batch(scene_data(scene, seed), IMAGES * 2)
    with torch.no_grad():
        sure = (network(x).argmax(1) == target) & truth.flatten(1).any(1)
    x, target, truth = (part[sure][:IMAGES] for part in (x, target, truth))
    numbers: dict[str, Any] = {"interventions": interventions(scene, network, seed)}
    numbers["maps"] = measure_maps(network, x, target, truth, judged_metrics())
    for name, row in measure_maps(prepared, x, target, truth, {IN_DOMAIN: m.SingleDeletion(8)}).items():
        numbers["maps"][name] |= {IN_DOMAIN: row[IN_DOMAIN], f"quality of {IN_DOMAIN}": row["quality"]}
    for factor in (0.5, 2.0):
        numbers[f"logits x {factor}"] = measure_few(LogitsTimes(network, factor), x, target, truth)
    return numbers


def measure_few(network: nn.Module, x: Tensor, target: Tensor, truth: Tensor) -> dict[str, dict[str, float]]:
    """Return the means on the evidence, on noise, and on sparse and dense noise."""
    noise = rough_noise(truth.shape, 0)
    maps = {
        "evidence": under_gaussian(truth.float(), 1.0),
        "noise": noise,
        "sparse noise": noise**4,
        "dense noise": noise**0.25,
    }
    methods = {name: Drawn(maps=normalize(S)) for name, S in maps.items()}
    numbers = measured_numbers(network, x, target, methods, judged_metrics())
    return {name: {key: nanmean(values) for key, values in row.items()} for name, row in numbers.items()}


def judged_networks(folder: Path, seeds: int) -> dict[tuple[Scene, int], dict[str, Any]]:
    """Compute what is missing; return the numbers of each network."""
    found: dict[tuple[Scene, int], dict[str, Any]] = {}
    for seed in range(seeds):
        for scene in get_args(Scene):
            compute: Callable[[], Any] = partial(scene_cell, scene, seed, folder)
            found[scene, seed] = stored_numbers(folder / f"{scene}-{seed}.json", compute)
    return found


def correlation(numbers: Numbers, metric: str, names: list[str], sign: int) -> float:
    """Return Spearman's correlation over maps of the metric's means and the means of the quality."""
    known = [name for name in names if metric in numbers[name]]
    quality_of = f"quality of {metric}" if metric == IN_DOMAIN else "quality"
    columns = torch.tensor(
        [[nanmean(numbers[name][key]) * s for name in known] for key, s in ((metric, sign), (quality_of, 1))]
    ).double()
    return float(torch.corrcoef(ranks(columns))[0, 1])


def nanmean(values: list[float]) -> float:
    """Return the mean of what is a number."""
    return float(torch.tensor(values).nanmean())


def images_needed(numbers: Numbers, metric: str) -> float:
    """Return how many images show Grad-CAM to differ from a random map by two standard errors; infinite if none do."""
    good, bad = (torch.tensor(numbers[name][metric]).double() for name in ("gradcam", "random"))
    difference = (good - bad)[~(good - bad).isnan()]
    mean, std = float(difference.mean()), float(difference.std())
    return (2 * std / mean) ** 2 if mean else float("inf")


def metric_tables(folder: Path, output: Path, seeds: int = 5) -> dict[str, list[list[str]]]:
    """Compute what is missing, and return the rows of the tables."""
    found = judged_networks(folder, seeds)
    rows = [["metric", "case", "graded maps", "methods", *PARTS, "images"]]
    for name, metric in {**judged_metrics(), IN_DOMAIN: m.SingleDeletion(8)}.items():
        for scene in get_args(Scene):
            own = [found[scene, seed] for seed in range(seeds)]
            rows.append([name, scene, *judged(own, name, 1 if metric.wants_high else -1)])
    changed = [["case", "accuracy", "%"]]
    for scene in get_args(Scene):
        own = [found[scene, seed]["interventions"] for seed in range(seeds)]
        changed += [[scene, key, mean_and_interval([n[key] for n in own])] for key in own[0]]
    write_whole(output / "metrics_means.csv", csv_text(means_of(found)))
    return {"metrics": rows, "interventions": changed}


def means_of(found: Mapping[tuple[Scene, int], dict[str, Any]]) -> list[list[str]]:
    """Return the means over images of all metrics on all maps, from which the correlations follow."""
    rows = [["case", "seed", "map", "metric", "mean"]]
    for (scene, seed), n in found.items():
        for name, metrics in n["maps"].items():
            rows += [[scene, str(seed), name, key, f"{nanmean(values):.6g}"] for key, values in metrics.items()]
    return rows


def judged(own: list[dict[str, Any]], name: str, sign: int) -> list[str]:
    """Return one row: correlations with the quality, sensitivities, and the number of images."""
    explained = list(judged_methods())
    drawn = [key for key in own[0]["maps"] if key not in explained]
    known = name in own[0]["maps"]["evidence"]
    cells = [
        mean_and_interval([correlation(n["maps"], name, drawn, sign) for n in own]) if known else "",
        mean_and_interval([correlation(n["maps"], name, explained, sign) for n in own]),
    ]
    for part in PARTS:
        measured = known and name != IN_DOMAIN and (part != "substrate" or name in SUBSTRATES)
        cells.append(median_and_range([sensitivity(n, name, part) for n in own]) if measured else "")
    needed = sorted(images_needed(n["maps"], name) for n in own)
    return [*cells, f"{needed[len(needed) // 2]:.0f}"]


def median_and_range(values: list[float]) -> str:
    """Return the median, and the lowest and highest value: a ratio may be far from the others."""
    return f"{statistics.median(values):.2g} ({min(values):.2g} to {max(values):.2g})"


def sensitivity(n: dict[str, Any], name: str, part: str) -> float:
    """Return how far the metric moves with what is not quality, as a share of the way from noise to the evidence."""
    maps, half, double = n["maps"], n["logits x 0.5"], n["logits x 2.0"]
    if part in ("resolution", "substrate"):
        there = nanmean(maps["evidence"][name])
        way = abs(there - nanmean(maps["noise"][name]))
        other = maps["cells of 4"][name] if part == "resolution" else maps["evidence"][SUBSTRATES[name]]
        return abs(there - nanmean(other)) / max(way, 1e-9)
    way = abs(double["evidence"][name] - double["noise"][name])
    if part == "confidence":
        return abs(double["evidence"][name] - half["evidence"][name]) / max(way, 1e-9)
    return abs(double["sparse noise"][name] - double["dense noise"][name]) / max(way, 1e-9)
