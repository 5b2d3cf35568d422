"""The comparison of two runs as one HTML page, in the form of the report of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interpretable_training.files import write_whole

from . import parts
from .comparison import Comparison
from .journal import JournalRun
from .page import embed_films, fill_template, overlay_style

SIDES = ("before", "after")
SHOWN = 24  # images, the largest changes


def write_comparison(
    comparison: Comparison, path: str | Path, failed: Iterable[str] = (), max_megabytes: float = 30
) -> Path:
    """Write the page of a comparison, and return its path.

    >>> from interpretable_training.report.comparison import compare_runs
    >>> from interpretable_training.report.journal import Journal
    >>> Journal("old/explanations").write("run", model="Classifier", classes=["cat", "dog"])
    >>> write_comparison(compare_runs("old", "old"), "comparison.html").name
    'comparison.html'

    Args:
        comparison: Result of `compare_runs`.
        path: File to write.
        failed: Sentences of `Comparison.violations`, which are shown at the top.
        max_megabytes: Size above which explanation steps are left out, evenly.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "Comparison of {model}"
    write_whole(
        path, fill_template(comparison_data(comparison, list(failed), max_megabytes * 1e6), title, "comparison.js")
    )
    return path


def comparison_data(comparison: Comparison, failed: list[str], size: float) -> parts.Part:
    """Return all data of the page, in at most `size` bytes unless the parts that cannot be thinned take more."""
    axes = [parts.Axis(run) for run in comparison.runs]
    if any(axis.name == "step" for axis in axes):
        for axis in axes:
            axis.name = "step"
    kinds = {"metrics": parts.metric_charts, "training": parts.training_charts, "drift": _drift_charts}
    sides = list(zip(comparison.runs, axes))
    data: dict[str, Any] = {
        "run": "",
        "axis": axes[0].name,
        "model": _started(comparison.runs[1], "model") or "two runs",
        "classes": _started(comparison.runs[1], "classes"),
        "names": comparison.names,
        "failed": failed,
        "images": [{**row, "moved": round(row["moved"], 4)} for row in comparison.images[:SHOWN]],
        "metrics": metric_table(comparison),
        "pairs": pair_table(comparison),
        "by_class": [list(row.values()) for row in comparison.classes],
        "confusions": [list(row.values()) for row in comparison.confusions],
        "charts": {name: joined_charts([charts(*side) for side in sides]) for name, charts in kinds.items()},
        "missing": comparison.missing,
        "overlay": overlay_style(),
    }
    room = (size - len(fill_template({**data, "sides": []}, "", "comparison.js").encode("utf-8", "replace"))) / 2
    data["sides"] = [embed_films(run, axis, room) for run, axis in sides]
    return data


def _started(run: JournalRun, key: str) -> Any:
    """Return a fact that the run wrote when it started."""
    return next((line[key] for line in reversed(run.of("run")) if line.get(key)), None)


def _drift_charts(run: JournalRun, axis: parts.Axis) -> list[parts.Part]:
    return parts.drift(run, axis)[0]


def joined_charts(charts: Iterable[Iterable[parts.Part]]) -> list[parts.Part]:
    """Return a chart for each title that both runs have, with the lines of both."""
    by_title: list[dict[str, parts.Part]] = [{chart["title"]: chart for chart in side} for side in charts]
    joined = []
    for title, chart in by_title[0].items():
        if title in by_title[1]:
            lines = [
                {"label": f"{name}: {line['label']}", "points": line["points"]}
                for name, side in zip(SIDES, by_title)
                for line in side[title]["lines"]
            ]
            joined.append({"title": title, "lines": lines, "facts": chart.get("facts")})
    return joined


def metric_table(comparison: Comparison) -> parts.Part:
    """Return the last numbers of both runs."""
    rows = [
        [
            row["name"],
            *(parts.round_for_page(row[key], 4) for key in ("before", "after", "difference")),
            row["direction"],
        ]
        for row in comparison.metrics
    ]
    return {"head": ["", *SIDES, "difference", "direction"], "rows": rows}


def pair_table(comparison: Comparison) -> parts.Part:
    """Return the numbers of the same images in both runs, with the interval of the difference."""
    rows = []
    for row in comparison.pairs:
        low, high = (f"{row[key]:+.3g}" for key in ("low", "high"))
        numbers = [parts.round_for_page(row[key], 4) for key in (*SIDES, "difference")]
        rows.append([row["name"], row["images"], *numbers, f"[{low}, {high}]", _p_value(row["p"]), row["direction"]])
    return {"head": ["", "images", *SIDES, "difference", "95 % interval", "p", "direction"], "rows": rows}


def _p_value(p: float | None) -> str | None:
    return None if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
