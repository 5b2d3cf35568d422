"""Numbers of the same images in two runs, with bootstrap intervals of their mean difference."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from interpretable_training.evaluation.bootstrap import BootstrapDraws, interval, p_value

from .journal import JournalRun, Line
from .map_distance import map_distance, read_maps
from .run_finder import TABLE

ROWS = {"prob": "probability of the explained class", "loss": "loss", "entropy": "entropy of the map"}
DIRECTIONS = {
    "loss": "lower is better",
    "error": "lower is better",
    "acc": "higher is better",
    "correct": "higher is better",
}
Track = tuple[str, str]  # method and view
Rows = Mapping[Any, float]  # image -> number


def direction_of(name: str) -> str:
    """Return the better direction of a quantity that has no passport; "" where its name does not show it."""
    return next((text for word, text in DIRECTIONS.items() if word in name.lower()), "")


def paired(name: str, before: Rows, after: Rows, direction: str = "") -> dict[str, Any] | None:
    """Return means, difference, 95 % interval and p-value over the images of both; None with fewer than two.

    >>> paired("loss", {1: 0.5, 2: 0.7}, {1: 0.4, 2: 0.6})["difference"]
    -0.1
    """
    images = [image for image in before if image in after and math.isfinite(before[image] + after[image])]
    if len(images) < 2:
        return None
    a, b = (torch.tensor([rows[image] for image in images], dtype=torch.float64) for rows in (before, after))
    drawn = BootstrapDraws(torch.arange(len(images))).means((b - a)[:, None])[:, 0]
    low, high = interval(drawn)
    numbers: dict[str, Any] = {
        "before": a.mean(),
        "after": b.mean(),
        "difference": (b - a).mean(),
        "low": low,
        "high": high,
    }
    rounded = {key: float(f"{float(value):.5g}") for key, value in numbers.items()}
    return {"name": name, "images": len(images), **rounded, "p": p_value(drawn), "direction": direction}


def last_maps(run: JournalRun) -> dict[Track, Line]:
    """Return method and view -> line of the last maps of the panel in the training."""
    lines = (
        line
        for line in run.of("maps")
        if line.get("group") == "panel" and line.get("stage", "fit") in ("fit", "explain")
    )
    return {(str(line["method"]), str(line["view"])): line for line in lines}


def common_tracks(before: Mapping[Track, Line], after: Mapping[Track, Line]) -> list[Track]:
    """Return a track per method that both runs have, that of the label if possible: then the classes are the same."""
    shared = sorted((track for track in before if track in after), key=lambda track: track[1] != "label")
    return list({method: (method, view) for method, view in reversed(shared)}.values())[::-1]


def moved_rows(before: Line, after: Line, same: Iterable[str]) -> list[dict[str, Any]]:
    """Return for each image how much of its map's mass moved and what is predicted."""
    first, last = read_maps(before), read_maps(after)
    facts = [{str(row["id"]): row for row in line["rows"]} for line in (before, after)]
    rows = []
    for image in same:
        if image in first and image in last:
            a, b = (rows_of[image] for rows_of in facts)
            row: dict[str, Any] = {"id": image, "moved": map_distance(last[image], first[image])}
            row |= {"method": before["method"], "view": before["view"], "label": a.get("label")}
            row |= {
                f"{key}_{side}": r.get(key) for side, r in (("before", a), ("after", b)) for key in ("pred", "prob")
            }
            rows.append(row)
    return [row for row in rows if math.isfinite(row["moved"])]


def panel_pairs(before: Mapping[Track, Line], after: Mapping[Track, Line], same: Iterable[str]) -> list[dict[str, Any]]:
    """Return the paired numbers of the panel's images: correct predictions, probability, loss, entropy of the maps."""
    same, pairs = set(same), []
    for index, track in enumerate(common_tracks(before, after)):
        sides = [_columns(line, same) for line in (before[track], after[track])]
        for key in ("correct", *ROWS):
            if index == 0 or key == "entropy":  # the others are the same for all methods
                name = f"{track[0]}/{ROWS[key]}" if key == "entropy" else ROWS.get(key, "correct predictions")
                direction = {"entropy": ""}.get(key, direction_of(key))
                pairs.append(paired(name, sides[0][key], sides[1][key], direction))
    return [pair for pair in pairs if pair]


def _columns(line: Line, same: set[str]) -> dict[str, dict[str, float]]:
    """Return quantity -> image -> number of a line of maps."""
    rows = [row for row in line["rows"] if str(row["id"]) in same]
    columns = {key: {str(row["id"]): row[key] for row in rows if row.get(key) is not None} for key in ROWS}
    judged = [row for row in rows if row.get("pred") is not None and row.get("label") is not None]
    return {**columns, "correct": {str(row["id"]): float(row["pred"] == row["label"]) for row in judged}}


def table_pairs(before: Path, after: Path) -> list[dict[str, Any]]:
    """Return the paired numbers of two results of `evaluate`, where both folders have one."""
    if not all((folder / TABLE).is_file() for folder in (before, after)):
        return []
    first, last = (_read_values(folder / TABLE) for folder in (before, after))
    passports = json.loads((after / "passports.json").read_text(encoding="utf-8")).get("metrics", {})
    pairs = [
        paired(f"{method}/{metric}", rows, last[method, metric], passports.get(metric, {}).get("direction", ""))
        for (method, metric), rows in first.items()
        if (method, metric) in last
    ]
    return [pair for pair in pairs if pair]


def _read_values(path: Path) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """Return method and metric -> image and class -> number."""
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image, target, method, _ = (row.pop(key) for key in ("image", "class", "method", "degenerate"))
            for metric, number in row.items():
                values.setdefault((method, metric), {})[image, target] = float(number)
    return values
