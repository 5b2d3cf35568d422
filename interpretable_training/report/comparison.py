"""Comparison of two runs, checkpoints or sweep members by their journals: maps, metrics, predictions."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from interpretable_training.mistakes import closest

from .journal import JournalRun, Line
from .paired_rows import common_tracks, direction_of, last_maps, moved_rows, paired, panel_pairs, table_pairs
from .parts import INVALID, split_keys
from .run_finder import FOLDER, find_run

MOVED = "moved"  # the share of a map's mass that lies elsewhere in the other run
SKIPPED = ("Drift", "Alarms")  # callbacks whose values compare explanation steps of one run


@dataclass(frozen=True)
class Comparison:
    """Differences of two runs in what both have; numbers are those of the last explanation step of each.

    Attributes:
        names: the two runs, as they were given.
        runs: their journals.
        images: rows of the panel's images, the largest change of the map first.
        metrics: rows with a number of each run; those of `pairs` have intervals.
        pairs: rows of numbers per image, with bootstrap intervals of the difference.
        classes: rows of the true classes of the panel.
        confusions: rows of true and predicted class with the number of images in each run.
        missing: what could not be compared, in words.
    """

    names: tuple[str, str]
    runs: tuple[JournalRun, JournalRun]
    images: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    confusions: list[dict[str, Any]]
    missing: list[str]

    def facts(self) -> dict[str, Any]:
        """Return everything but the journals in the types of JSON."""
        facts = {key: value for key, value in vars(self).items() if key not in ("runs", "names")}
        return {"before": self.names[0], "after": self.names[1], **facts}

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=2) + "\n"

    def violations(self, limits: Mapping[str, float]) -> list[str]:
        """Return a sentence for each number that is worse in the second run by more than its limit.

        Args:
            limits: Name of a metric -> largest change for the worse. A name without a method counts for all methods,
                "moved" is the mean share that lies elsewhere. Where the better direction is not known, a
                change in either direction counts.
        """
        rows = [*self.metrics, *self.pairs]
        sentences = []
        for name, limit in limits.items():
            chosen = [row for row in rows if name in (row["name"], row["name"].rpartition("/")[2])]
            if not chosen:
                names = sorted({row["name"].rpartition("/")[2] for row in rows} | {row["name"] for row in rows})
                raise ValueError(
                    f"expected a limit for a number of both runs, got {name!r}; closest: {closest(name, names)}. "
                    f"All: {names}."
                )
            sentences += [
                f"{row['name']} changed from {row['before']:.4g} to {row['after']:.4g}, by more than {limit:g}"
                f"{' for the worse' if row['direction'] else ''}"
                for row in chosen
                if not worsening(row) <= limit  # also of numbers that are not finite
            ]
        return sentences


def worsening(row: Mapping[str, Any]) -> float:
    """Return by how much a row is worse in the second run; the size of the change where no direction is known."""
    sign = {"l": 1, "h": -1}.get(row["direction"][:1])
    return float(abs(row["difference"]) if sign is None else sign * row["difference"])


def compare_runs(before: str | Path, after: str | Path) -> Comparison:
    """Compare two runs by their journals.

    >>> from interpretable_training.report.journal import Journal
    >>> for run, value in {"old": 0.7, "new": 0.6}.items():
    ...     line = {"values": {"xai/gradcam/energy_on_object": value}}
    ...     Journal(f"{run}/explanations").write("values", epoch=0, step=10, **line)
    >>> comparison = compare_runs("old", "new")
    >>> comparison.violations({"energy_on_object": 0.05})
    ['gradcam/energy_on_object changed from 0.7 to 0.6, by more than 0.05']

    Args:
        before: Folder of a run, of a sweep's run or of `evaluate --output`, or a checkpoint in the folder of a run.
        after: The run that is judged.
    """
    runs = find_run(before), find_run(after)
    same, missing = same_images(*runs)
    first, last = map(last_maps, runs)
    images = [row for track in common_tracks(first, last) for row in moved_rows(first[track], last[track], same)]
    images.sort(key=lambda row: -row["moved"])
    tables = [run.folder.parent if run.folder.name == FOLDER else run.folder for run in runs]
    pairs = panel_pairs(first, last, same) + table_pairs(*tables)
    moved = [moved_pair(images, method) for method in dict.fromkeys(row["method"] for row in images)]
    classes, confusions = class_rows(images), confusion_rows(images)
    missing += [f"{side}: {text}" for side, run in zip(("before", "after"), runs) for text in run.missing]
    if not images:
        missing.append("maps: the runs have no map of the same method for the same image")
    names = str(before), str(after)
    metrics = sorted(metric_rows(*runs), key=lambda row: row["name"])
    return Comparison(names, runs, images, metrics, [*filter(None, moved), *pairs], classes, confusions, missing)


def same_images(before: JournalRun, after: JournalRun) -> tuple[list[str], list[str]]:
    """Return the images whose pictures are equal in both runs, and how many are not, in words."""
    files = [{str(line["id"]): line["file"] for line in run.of("image")} for run in (before, after)]
    shared = [name for name in files[0] if name in files[1]]
    same = [name for name in shared if _equal(*(side[name] for side in files))]
    count, other = len(shared) - len(same), len(files[0].keys() ^ files[1].keys())
    missing = [f"{count} images have other pictures in the second run"] if count else []
    return same, missing + ([f"{other} images are in one run only"] if other else [])


def _equal(path: Path, other: Path) -> bool:
    """Whether two files hold the same picture."""
    try:
        with Image.open(path) as a, Image.open(other) as b:
            return a.size == b.size and a.convert("RGB").tobytes() == b.convert("RGB").tobytes()
    except Exception:  # Pillow raises many types for damaged files
        return False


def moved_pair(images: Iterable[Line], method: str) -> dict[str, Any] | None:
    """Return the mean share of a method's maps that moved, as a row with an interval.

    It has no p-value: a share is never negative, so that a test against 0 finds any two runs different.
    """
    shares = {row["id"]: row["moved"] for row in images if row["method"] == method}
    row = paired(f"{method}/{MOVED}", dict.fromkeys(shares, 0.0), shares, "lower is better")
    return row and {**row, "p": None}


def metric_rows(before: JournalRun, after: JournalRun) -> list[dict[str, Any]]:
    """Return a row for each number that both runs logged: the last of each."""
    rows = []
    directions = {line["metric"]: str(line["facts"].get("direction", "")) for line in after.of("passport")}
    first, last = map(_last_values, (before, after))
    names = split_keys(before, first)
    for key, value in first.items():
        if key not in last:
            continue
        name = "/".join(names[key]) if key in names else key
        stage = key.partition("xai/")[0] if key in names else ""
        direction = directions.get(name.rpartition("/")[2], direction_of(name) if key not in names else "")
        difference = float(f"{last[key] - value:.5g}")
        rows.append(
            {
                "name": stage + name,
                "before": value,
                "after": last[key],
                "difference": difference,
                "direction": direction,
            }
        )
    return rows


def _last_values(run: JournalRun) -> dict[str, float]:
    """Return key -> the last number of the metrics of explanations and of what the project logged."""
    values: dict[str, float] = {}
    for line in run.of("training", "values"):
        if line["kind"] == "training" or not any(word in str(line.get("callback")) for word in SKIPPED):
            numbers = {key: value for key, value in line["values"].items() if value is not None}
            values |= {key: value for key, value in numbers.items() if not key.endswith(("_step", INVALID))}
    known = split_keys(run, values)
    return {key: value for key, value in values.items() if key in known or "xai/" not in key}


def class_rows(images: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each true class: images, correct predictions of each run, and the mean share that moved."""
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for image in images:
        if image["label"] is not None:
            rows.setdefault(image["label"], []).append(image)
    return [
        {
            "label": label,
            "images": len({image["id"] for image in of_class}),
            **{
                f"correct_{side}": len({image["id"] for image in of_class if image[f"pred_{side}"] == label})
                for side in ("before", "after")
            },
            MOVED: sum(image["moved"] for image in of_class) / len(of_class),
        }
        for label, of_class in sorted(rows.items())
    ]


def confusion_rows(images: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each true class with another prediction, in one of the runs; the largest change first."""
    counts = {
        side: Counter(
            (label, pred) for label, pred in {i["id"]: (i["label"], i[f"pred_{side}"]) for i in images}.values()
        )
        for side in ("before", "after")
    }
    pairs = [pair for pair in counts["before"] | counts["after"] if None not in pair and pair[0] != pair[1]]
    rows = [{"label": a, "pred": b, **{side: count[a, b] for side, count in counts.items()}} for a, b in pairs]
    return sorted(rows, key=lambda row: (row["before"] - row["after"], row["label"], row["pred"]))
