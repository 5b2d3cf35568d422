"""Parts of the report per class and per pair of classes that the model confuses, from the last maps of the training."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from .journal import JournalRun, Line
from .map_distance import mean_distance, read_maps
from .parts import Part, during_training, round_for_page

HEAD = ["class", "images", "correct", "probability", "loss", "map moved since the first step"]
GROUPS = ("panel", "hardest")


def class_table(run: JournalRun) -> Part:
    """Return a row for each true class of the panel: predictions of the last step, and how far its maps moved."""
    lines = [line for line in run.of("maps") if line.get("group") == "panel" and during_training(line)]
    if not lines:
        return {}
    first = next(line for line in lines if _track(line) == _track(lines[-1]))
    before, after = read_maps(first), read_maps(lines[-1])
    rows: dict[int, list[Line]] = {}
    for row in lines[-1]["rows"]:
        if row.get("label") is not None:
            rows.setdefault(row["label"], []).append(row)
    table = []
    for label, of_class in sorted(rows.items()):
        ids = {str(row["id"]) for row in of_class}
        moved = mean_distance({name: S for name, S in after.items() if name in ids}, before)
        correct = sum(row.get("pred") == label for row in of_class)
        numbers = [_mean(of_class, "prob"), _mean(of_class, "loss"), None if first is lines[-1] else moved]
        table.append([label, len(of_class), correct, *(round_for_page(value, 3) for value in numbers)])
    known = [i for i in range(len(HEAD)) if any(row[i] is not None for row in table)]
    return {"head": [HEAD[i] for i in known], "rows": [[row[i] for i in known] for row in table]} if table else {}


def confusion_parts(run: JournalRun) -> list[Part]:
    """Return true class, predicted class and images of the last step of the panel and of the hardest images."""
    last = {line["group"]: line for line in run.of("maps") if line.get("group") in GROUPS and during_training(line)}
    pairs: dict[tuple[int, int], dict[str, str]] = {}
    for group, line in last.items():
        for row in line["rows"]:
            label, pred = row.get("label"), row.get("pred")
            if label is not None and pred is not None and label != pred:
                pairs.setdefault((label, pred), {}).setdefault(str(row["id"]), group)
    ordered = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"label": a, "pred": b, "images": list(images.items())} for (a, b), images in ordered]


def _track(line: Line) -> tuple[Any, Any]:
    return line["method"], line["view"]


def _mean(rows: Iterable[Line], key: str) -> float | None:
    """Return the mean of a quantity over the rows that have it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return fmean(values) if values else None
