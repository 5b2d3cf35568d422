"""Cells of docs/evidence computed once more from the raw numbers beside them, by other code."""

import csv
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy.stats import spearmanr

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
