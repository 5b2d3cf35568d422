"""On the real network: what randomized layers leave of maps, and how many masks or steps a map needs."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training import attribution as a
from interpretable_training.files import csv_text, write_whole
from interpretable_training.metrics import AverageDrop
from interpretable_training.metrics.core.similarity import spearman
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.metrics.sanity.parameter_randomization import ParameterRandomization
from interpretable_training.recipes.evidence.faithfulness import BLACK, LAYER, SHOWN, photograph_cams
from interpretable_training.recipes.evidence.lite0 import lite0
from interpretable_training.recipes.evidence.photographs import photograph, whole_view
from interpretable_training.recipes.recipe import stored_numbers
from interpretable_training.recipes.repair import mean_and_interval

STAGES = 10
MASKS = (100, 250, 500, 1000, 2000)
MOST_MASKS = 4000
STEPS = (10, 25, 50, 100, 200)
MOST_STEPS = 400
CONVERGED = SHOWN[:3]  # minutes each


def randomized_methods() -> dict[str, a.Attribution]:
    """Return methods whose maps are compared before and after layers get random parameters."""
    slow = ("scorecam", "ablationcam", "opticam", "smoothgradcamplusplus")
    cams = {name: method for name, method in photograph_cams().items() if name not in slow}
    return {
        **cams,
        "gradient": a.Gradient(),
        "inputxgradient": a.InputXGradient(**BLACK),
        "smoothgrad": a.SmoothGrad(n=10),
        "integratedgradients": a.IntegratedGradients(steps=20),
        "guidedbackprop": a.GuidedBackprop(),
        "guidedgradcam": a.GuidedGradCAM(layer=LAYER),
        "fullgrad": a.FullGrad(),
        "fakecam": a.FakeCAM(),
        "random": a.RandomMap(),
    }


def whole_photographs(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the shown photographs and their predicted classes."""
    images = torch.stack([whole_view(photograph(name)) for name in SHOWN])
    with torch.no_grad():
        return images, network(images).argmax(1)


def checked_method(name: str) -> dict[str, Any]:
    """Return the similarities of a method's maps after each stage of random layers, from the output on."""
    network = lite0()
    images, target = whole_photographs(network)
    (check,) = ParameterRandomization(stages=STAGES)(network, {name: randomized_methods()[name]}, images, target)
    return vars(check)


def sanity_tables(folder: Path, output: Path) -> dict[str, list[list[str]]]:
    """Compute what is missing, write the similarities of all stages, and return the rows of the table."""
    rows = [["method", "SSIM, half random", "rank correlation", "SSIM, all random", "verdict"]]
    stages = [["method", "similarity", *(f"after stage {i + 1}" for i in range(STAGES))]]
    for name in randomized_methods():
        check = Check(**stored_numbers(folder / f"randomized-{name}.json", partial(checked_method, name)))
        figures = [check.similarity["ssim"], check.similarity["spearman"], check.curves["ssim"][-1]]
        verdict = {True: "pass", False: "fail", None: ""}[check.passed]
        rows.append([name, *(f"{figure:.2f}" for figure in figures), verdict])
        stages += [[name, kind, *(f"{value:.4f}" for value in curve)] for kind, curve in check.curves.items()]
    write_whole(output / "randomized_stages.csv", csv_text(stages))
    return {"randomized": rows}


def converged(name: str) -> dict[str, dict[str, float]]:
    """Return how near maps of a photograph with few masks or steps are to those with many, and Opti-CAM's drop."""
    network = lite0()
    images = whole_view(photograph(name))[None]
    with torch.no_grad():
        target = network(images).argmax(1)
    most = a.RISE(n=MOST_MASKS, seed=1, **BLACK)(network, images, target)  # other masks than those compared with it
    numbers = {}
    for n in MASKS:
        S = a.RISE(n=n, **BLACK)(network, images, target)
        numbers[f"RISE, {n} masks"] = {"correlation": float(spearman(S, most))}
    last = a.OptiCAM(layer=LAYER, steps=MOST_STEPS, **BLACK)(network, images, target)
    for steps in STEPS:
        S = a.OptiCAM(layer=LAYER, steps=steps, **BLACK)(network, images, target)
        drop = AverageDrop(**BLACK).measure(model=network, images=images, saliency=S, target=target)
        numbers[f"Opti-CAM, {steps} steps"] = {"correlation": float(spearman(S, last)), "drop": float(drop)}
    return numbers


def convergence_tables(folder: Path, output: Path) -> dict[str, list[list[str]]]:
    """Compute what is missing, write the numbers of each photograph, and return the rows of the table over them."""
    found = [stored_numbers(folder / f"converged-{name}.json", partial(converged, name)) for name in CONVERGED]
    raw = [["photograph", "map", "number", "value"]]
    for name, numbers in zip(CONVERGED, found):
        raw += [[name, key, of, f"{value:.5g}"] for key, own in numbers.items() for of, value in own.items()]
    write_whole(output / "convergence_raw.csv", csv_text(raw))
    rows = [["map", "correlation", "drop"]]
    for key, first in found[0].items():
        rows.append([key, *(mean_and_interval([n[key][column] for n in found]) for column in first)])
    return {"convergence": rows}
