"""Compare the readings of Expected Grad-CAM's difference term: completeness, and quality of the maps.

A reading is complete if the weighted differences of all channels and cells add up to y(x) - mean y(x'). The journal
form of the method ("Not All CAMs Are Complete", TMLR 2026, https://openreview.net/forum?id=NeeGBwXNs5) makes this
property decisive.
"""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from interpretable_training import metrics as m
from interpretable_training.attribution import ExpectedGradCAM
from interpretable_training.attribution.core.map_operations import normalize
from interpretable_training.attribution.expected_grad_cam import Difference
from interpretable_training.evaluation import evaluate
from interpretable_training.recipes.evidence.believable import IMAGES, LAYER, nanmean, quality
from interpretable_training.recipes.evidence.known_evidence import Scene, scene_batch, scene_data, scene_network
from interpretable_training.recipes.recipe import stored_numbers
from interpretable_training.recipes.repair import mean_and_interval

COLUMNS = ("completeness error", "infidelity", "road", "quality")
BASELINES = 50


def expected_cell(scene: Scene, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return reading -> its completeness error, metrics of its maps and their quality."""
    network, data = scene_network(scene, seed, folder), scene_data(scene, seed)
    x, target, truth = scene_batch(data, IMAGES)
    data.setup("fit")
    baselines = torch.stack([data.splits["train"][i]["image"] for i in range(BASELINES)])
    with torch.no_grad():
        gain = network(x).gather(1, target[:, None])[:, 0] - network(baselines).mean(0)[target]
    metrics = {"infidelity": m.Infidelity(n=32), "road": m.ROAD((20, 40, 60, 80))}
    numbers = {}
    for reading in get_args(Difference):
        method = ExpectedGradCAM(layer=LAYER, baselines=baselines, n=BASELINES, draws="sequential", difference=reading)
        error = method.convergence(network, x, target).delta.abs() / gain.abs()
        options: dict[str, Any] = {"controls": False, "progress": False, "resamples": 1}
        table = evaluate(network, {reading: method}, metrics, [(x, target)], **options)
        numbers[reading] = {
            "completeness error": float(error.median()),
            **{name: nanmean(table.per_image(reading, name).tolist()) for name in metrics},
            "quality": nanmean(quality(normalize(method(network, x, target)), truth).tolist()),
        }
    return numbers


def expected_tables(folder: Path, output: Path, seeds: int = 5) -> dict[str, list[list[str]]]:
    """Compute what is missing, and return the rows of the table."""
    rows = [["case", "reading", *COLUMNS]]
    for scene in get_args(Scene):
        found = [
            stored_numbers(folder / f"expected-{scene}-{seed}.json", partial(expected_cell, scene, seed, folder))
            for seed in range(seeds)
        ]
        for reading in get_args(Difference):
            rows.append([scene, reading, *(mean_and_interval([n[reading][key] for n in found]) for key in COLUMNS)])
    return {"expected": rows}
