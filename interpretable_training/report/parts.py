"""Parts of the report, made from the lines of a journal: curves, alarms, drift, costs, tables."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .journal import JournalRun, Line

KEY = re.compile(r"(?:\w+/)?xai/(.+)")  # also of a test: test/xai/...
SPLIT = re.compile(r"(train|training|val|valid|validation|test)[/_](.+)")
WHERE = ("cue", "shortcut", "object", "energy", "border")  # in names of metrics that measure places in the image
INVALID = "/invalid"  # behind a metric: the number of images for which it is not defined
DRIFT = {"similarity": "similarity to the", "spearman": "rank correlation with the", "shift": "shift from the"}
Points = list[tuple[float, float | None]]
Part = dict[str, Any]


def round_for_page(value: float | None, digits: int = 5) -> float | None:
    """Return a number with as many digits as the page shows."""
    return None if value is None else float(f"{value:.{digits}g}")


class Axis:
    """X axis of curves: epochs, or steps where an epoch has several explanation steps."""

    def __init__(self, run: JournalRun) -> None:
        seen = Counter(
            (line["kind"], line.get("callback"), line.get("method"), line.get("view"), line["epoch"], key)
            for line in run.of("values", "drift", "maps")
            if during_training(line) and line.get("epoch") is not None
            for key in line.get("values", [line.get("group", "")])
        )
        self.name = "step" if any(count > 1 for count in seen.values()) else "epoch"

    def __call__(self, line: Line) -> float | None:
        """Return the position of a line; None where it has none."""
        x = line.get(self.name)
        return None if x is None else float(x)


def during_training(line: Line) -> bool:
    """Whether a line belongs to the training, not to a separate test or validation."""
    return line.get("stage", "fit") == "fit"


def curves(lines: Iterable[Line], axis: Axis) -> dict[str, Points]:
    """Return key -> points (x, y) of the values of the training."""
    values: dict[str, dict[float, float | None]] = {}
    for line in lines:
        x = axis(line)
        if x is not None and during_training(line):
            for key, value in line["values"].items():
                values.setdefault(key, {})[x] = round_for_page(value)  # the last value at a position counts
    return {
        key: sorted(points.items()) for key, points in values.items() if any(y is not None for _, y in points.items())
    }


def split_keys(run: JournalRun, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return key -> method and metric for keys xai/<method>/<metric>; lines of maps name the methods with slashes."""
    slashed = {str(line["method"]) for line in run.of("maps", "drift") if "/" in str(line["method"])}
    parts = {}
    for key in keys:
        rest = match[1] if (match := KEY.fullmatch(key)) else ""
        known = [method for method in slashed if rest.startswith(f"{method}/")]
        method = max(known, key=len) if known else rest.partition("/")[0]
        if metric := rest[len(method) + 1 :]:
            parts[key] = (method, metric)
    return parts


def chart_per_title(pairs: Iterable[tuple[str, str, Points]], facts: Mapping[str, Part] = {}) -> list[Part]:
    """Return a chart for each title, given (title, label of a line, its points)."""
    charts: dict[str, Part] = {}
    for title, label, points in pairs:
        chart = charts.setdefault(title, {"title": title, "lines": [], "facts": facts.get(title)})
        chart["lines"].append({"label": label, "points": points})
    return list(charts.values())


def metric_charts(run: JournalRun, axis: Axis) -> list[Part]:
    """Return a chart per metric with a line per method; drift and alarms have charts of their own."""
    excluded = "Drift" if run.of("drift") else "\n"  # in no name
    known = curves((line for line in run.of("values") if excluded not in str(line.get("callback"))), axis)
    passports = {line["metric"]: line["facts"] for line in run.of("passport")}
    names = split_keys(run, [*known, *(str(line["name"]) for line in run.of("alarm"))])
    raised = {names.get(str(line["name"]), ("", str(line["name"])))[1] for line in run.of("alarm")}
    pairs = [(names[key][1], names[key][0], points) for key, points in known.items() if key in names]
    undefined: dict[str, float] = {}
    for title, _, points in pairs:
        if title.endswith(INVALID):
            most = max(y for _, y in points if y is not None)
            undefined[title] = max(most, undefined.get(title, 0))
    shown = (pair for pair in pairs if not (pair[0].startswith("alarm/") and pair[0] in raised))
    charts = chart_per_title((pair for pair in shown if not pair[0].endswith(INVALID)), passports)
    for chart in charts:
        chart["where"] = next((i for i, word in enumerate(WHERE) if word in chart["title"]), None)
        chart["undefined"] = undefined.get(chart["title"] + INVALID)
    order = {chart["title"]: len(WHERE) if chart["where"] is None else chart["where"] for chart in charts}
    return sorted(charts, key=lambda chart: (chart["title"] not in raised, order[chart["title"]]))


def training_charts(run: JournalRun, axis: Axis) -> list[Part]:
    """Return a chart per quantity that the project logged, with a line per split, training first."""
    pairs: dict[tuple[str, str], Points] = {}
    for key, points in curves(run.of("training"), axis).items():
        match = SPLIT.fullmatch(key)
        title, label = (match[2], match[1]) if match else (key, key)
        if not key.endswith("_step"):
            pairs.setdefault((title.removesuffix("_epoch"), label), points)
    ordered = sorted(pairs.items(), key=lambda pair: not pair[0][1].startswith("train"))
    return sorted(
        chart_per_title((*names, points) for names, points in ordered), key=lambda chart: len(chart["lines"]) == 1
    )


def alarms(run: JournalRun, axis: Axis) -> list[Part]:
    """Return messages, curves of all methods and threshold of each metric that raised an alarm."""
    lines = run.of("alarm")
    known = curves(run.of("values"), axis)
    names = split_keys(run, [*known, *(str(line["name"]) for line in lines)])
    raised: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        name = str(line["name"])
        raised.setdefault(names.get(name, ("", name))[1], {}).setdefault(name, []).append(line)
    alarms = []
    for metric, by_name in raised.items():
        pairs = [(names[key][0], points) for key, points in known.items() if key in names and names[key][1] == metric]
        values = {
            name: [(x, round_for_page(line["value"])) for line in by if (x := axis(line)) is not None]
            for name, by in by_name.items()
        }
        limits = [line.get("threshold") for by in by_name.values() for line in by[-1:]]
        chart = {
            "title": metric.removeprefix("alarm/"),
            "lines": [{"label": label, "points": points} for label, points in pairs or values.items()],
            "thresholds": [round_for_page(limit) for limit in dict.fromkeys(limits) if limit is not None],
        }
        messages = [
            {
                "message": by[-1].get("message", ""),
                "count": len(by),
                "first": values[name][0][0] if values[name] else None,
            }
            for name, by in by_name.items()
        ]
        alarms.append({"raised": messages, "chart": chart})
    return sorted(alarms, key=lambda alarm: -sum(message["count"] for message in alarm["raised"]))


def drift(run: JournalRun, axis: Axis) -> tuple[list[Part], Part]:
    """Return charts of the mean over images, and method -> id -> curves of one image."""
    sums: dict[tuple[str, str], dict[float, list[float]]] = {}
    images: dict[str, dict[str, dict[str, Points]]] = {}
    for line in run.of("drift"):
        x = axis(line)
        for row in line["rows"] if x is not None else []:
            for against in ("previous", "first", "best"):
                for key, value in (row.get(against) or {}).items():
                    if value is None or x is None:
                        continue
                    title = f"{DRIFT.get(key, key)} {against}"
                    sums.setdefault((title, line["method"]), {}).setdefault(x, []).append(value)
                    image = images.setdefault(line["method"], {}).setdefault(str(row["id"]), {})
                    image.setdefault(title, []).append((x, round_for_page(value, 3)))
    pairs = (
        (title, method, [(x, round_for_page(sum(values) / len(values))) for x, values in sorted(points.items())])
        for (title, method), points in sums.items()
    )
    return sorted(chart_per_title(pairs), key=lambda chart: chart["title"]), images


def final_tables(run: JournalRun) -> list[Part]:
    """Return a table per stage of the last values of separate tests and validations."""
    stages: dict[str, dict[str, dict[str, float | None]]] = {}
    for line in run.of("values"):
        if during_training(line) or any(name in str(line.get("callback")) for name in ("Drift", "Alarms")):
            continue
        for key, (method, metric) in split_keys(run, line["values"]).items():
            values = stages.setdefault(line["stage"], {}).setdefault(method, {})
            values[metric] = round_for_page(line["values"][key], 4)
    tables = []
    for stage, rows in stages.items():
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        cells = [[method, *(row.get(metric) for metric in metrics)] for method, row in rows.items()]
        tables.append({"title": stage, "head": ["", *metrics], "rows": cells})
    return tables


def costs(run: JournalRun, axis: Axis) -> Part:
    """Return seconds, share of the training time and megabytes: in total per callback, and over the training."""
    total: dict[str, dict[str, float]] = {}
    points: dict[str, Points] = {}
    for line in run.of("values"):
        seconds = line["values"].get("xai/seconds")
        if seconds is None or "callback" not in line:
            continue
        sums = total.setdefault(line["callback"], {"seconds": 0.0, "time": 0.0, "megabytes": 0.0})
        sums["seconds"] += seconds
        sums["time"] += (
            seconds / line["values"]["xai/share_of_epoch"] if line["values"].get("xai/share_of_epoch") else 0
        )
        sums["megabytes"] += line["values"].get("xai/megabytes") or 0
        if (x := axis(line)) is not None:
            points.setdefault(line["callback"], []).append((x, round_for_page(seconds)))
    if not total:
        return {}
    time = max(sums["time"] for sums in total.values())
    seconds = sum(sums["seconds"] for sums in total.values())
    rows = [
        [
            name,
            round_for_page(sums["seconds"], 3),
            _percent(sums["seconds"], time),
            round_for_page(sums["megabytes"], 3),
        ]
        for name, sums in total.items()
    ]
    return {
        "head": ["callback", "seconds", "share of training time", "MB on disk"],
        "rows": rows,
        "seconds": round_for_page(seconds, 3),
        "share": _percent(seconds, time),
        "charts": chart_per_title(("seconds", name, line) for name, line in points.items()),
    }


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def count_lines(lines: Iterable[Line], *keys: str) -> list[list[Any]]:
    """Return how often each combination of these facts occurs and its first epoch, the most frequent first."""
    first: dict[tuple[str, ...], Any] = {}
    count: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        facts = tuple(str(line.get(key, "")) for key in keys)
        first.setdefault(facts, line.get("epoch"))
        count[facts] += 1
    return [[*facts, number, first[facts]] for facts, number in count.most_common()]


def randomization(run: JournalRun) -> list[list[Any]]:
    """Return the rows of the last randomization test: method, similarities, verdict, rule."""
    lines = run.of("randomization")
    return [
        [
            row["method"],
            ", ".join(f"{name} {round_for_page(value, 3)}" for name, value in (row.get("similarity") or {}).items()),
            {True: "passed", False: "not passed", None: "undecided"}[row["passed"]],
            row.get("rule", ""),
        ]
        for row in (lines[-1]["rows"] if lines else [])
    ]
