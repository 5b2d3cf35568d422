"""What a journal tells, part by part, as the report draws it: curves, alarms, drift, costs, tables."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .journal import Line, Record

KEY = re.compile(r"(?:\w+/)?xai/(.+)")  # also that of test, test/xai/...
SPLIT = re.compile(r"(train|training|val|valid|validation|test)[/_](.+)")
WHERE = ("cue", "shortcut", "object", "energy", "border")  # in names of metrics that say where a model looks
INVALID = "/invalid"  # after a metric: for how many images it is not defined
DRIFT = {"similarity": "similarity to the", "spearman": "rank correlation with the", "shift": "shift from the"}
Points = list[tuple[float, float | None]]
Part = dict[str, Any]


def short(value: float | None, digits: int = 5) -> float | None:
    """A number as a page needs it."""
    return None if value is None else float(f"{value:.{digits}g}")


class Axis:
    """What curves are drawn over: epochs, or steps where there are several looks in an epoch."""

    def __init__(self, record: Record) -> None:
        seen = Counter(
            (line["kind"], line.get("callback"), line.get("method"), line.get("view"), line["epoch"], key)
            for line in record.of("values", "drift", "maps")
            if during_training(line) and line.get("epoch") is not None
            for key in line.get("values", [line.get("group", "")])
        )
        self.name = "step" if any(count > 1 for count in seen.values()) else "epoch"

    def __call__(self, line: Line) -> float | None:
        """Where a line lies."""
        x = line.get(self.name)
        return None if x is None else float(x)


def during_training(line: Line) -> bool:
    """Whether a line is of the training, not of a test or validation by itself."""
    return line.get("stage", "fit") == "fit"


def curves(lines: Iterable[Line], axis: Axis) -> dict[str, Points]:
    """Key -> points (x, y), of lines with `values` that belong to the training."""
    found: dict[str, dict[float, float | None]] = {}
    for line in lines:
        x = axis(line)
        if x is not None and during_training(line):
            for key, value in line["values"].items():
                found.setdefault(key, {})[x] = short(value)  # at one place the last counts
    return {
        key: sorted(points.items()) for key, points in found.items() if any(y is not None for _, y in points.items())
    }


def named(record: Record, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key -> method and metric, of keys xai/<method>/<metric>; names of methods with slashes are known from maps."""
    slashed = {str(line["method"]) for line in record.of("maps", "drift") if "/" in str(line["method"])}
    found = {}
    for key in keys:
        rest = match[1] if (match := KEY.fullmatch(key)) else ""
        known = [method for method in slashed if rest.startswith(f"{method}/")]
        method = max(known, key=len) if known else rest.partition("/")[0]
        if metric := rest[len(method) + 1 :]:
            found[key] = (method, metric)
    return found


def charts(pairs: Iterable[tuple[str, str, Points]], facts: Mapping[str, Part] = {}) -> list[Part]:
    """A chart for each title of (title, label of a line, its points)."""
    found: dict[str, Part] = {}
    for title, label, points in pairs:
        chart = found.setdefault(title, {"title": title, "lines": [], "facts": facts.get(title)})
        chart["lines"].append({"label": label, "points": points})
    return list(found.values())


def metric_charts(record: Record, axis: Axis) -> list[Part]:
    """A chart per metric with a line per method; drift has its own part, and so has what raised an alarm."""
    apart = "Drift" if record.of("drift") else "\n"  # which no name holds
    known = curves((line for line in record.of("values") if apart not in str(line.get("callback"))), axis)
    passports = {line["metric"]: line["facts"] for line in record.of("passport")}
    names = named(record, [*known, *(str(line["name"]) for line in record.of("alarm"))])
    raised = {names.get(str(line["name"]), ("", str(line["name"])))[1] for line in record.of("alarm")}
    pairs = [(names[key][1], names[key][0], points) for key, points in known.items() if key in names]
    undefined: dict[str, float] = {}
    for title, _, points in pairs:
        if title.endswith(INVALID):
            most = max(y for _, y in points if y is not None)
            undefined[title] = max(most, undefined.get(title, 0))
    shown = (pair for pair in pairs if not (pair[0].startswith("alarm/") and pair[0] in raised))
    found = charts((pair for pair in shown if not pair[0].endswith(INVALID)), passports)
    for chart in found:
        chart["where"] = next((i for i, word in enumerate(WHERE) if word in chart["title"]), None)
        chart["undefined"] = undefined.get(chart["title"] + INVALID)
    order = {chart["title"]: len(WHERE) if chart["where"] is None else chart["where"] for chart in found}
    return sorted(found, key=lambda chart: (chart["title"] not in raised, order[chart["title"]]))


def training_charts(record: Record, axis: Axis) -> list[Part]:
    """A chart per quantity with a line per split, training first."""
    pairs: dict[tuple[str, str], Points] = {}
    for key, points in curves(record.of("training"), axis).items():
        found = SPLIT.fullmatch(key)
        title, label = (found[2], found[1]) if found else (key, key)
        if not key.endswith("_step"):
            pairs.setdefault((title.removesuffix("_epoch"), label), points)
    ordered = sorted(pairs.items(), key=lambda pair: not pair[0][1].startswith("train"))
    return sorted(charts((*names, points) for names, points in ordered), key=lambda chart: len(chart["lines"]) == 1)


def alarms(record: Record, axis: Axis) -> list[Part]:
    """For each metric that raised an alarm: who raised it when, the curves of all methods, the threshold."""
    lines = record.of("alarm")
    known = curves(record.of("values"), axis)
    names = named(record, [*known, *(str(line["name"]) for line in lines)])
    raised: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        name = str(line["name"])
        raised.setdefault(names.get(name, ("", name))[1], {}).setdefault(name, []).append(line)
    found = []
    for metric, by_name in raised.items():
        pairs = [(names[key][0], points) for key, points in known.items() if key in names and names[key][1] == metric]
        own = {
            name: [(x, short(line["value"])) for line in by if (x := axis(line)) is not None]
            for name, by in by_name.items()
        }
        limits = [line.get("threshold") for by in by_name.values() for line in by[-1:]]
        chart = {
            "title": metric.removeprefix("alarm/"),
            "lines": [{"label": label, "points": points} for label, points in pairs or own.items()],
            "thresholds": [short(limit) for limit in dict.fromkeys(limits) if limit is not None],
        }
        told = [
            {"message": by[-1].get("message", ""), "count": len(by), "first": own[name][0][0] if own[name] else None}
            for name, by in by_name.items()
        ]
        found.append({"raised": told, "chart": chart})
    return sorted(found, key=lambda alarm: -sum(told["count"] for told in alarm["raised"]))


def drift(record: Record, axis: Axis) -> tuple[list[Part], Part]:
    """Charts of the mean over images, and method -> id -> curves of one image."""
    sums: dict[tuple[str, str], dict[float, list[float]]] = {}
    own: dict[str, dict[str, dict[str, Points]]] = {}
    for line in record.of("drift"):
        x = axis(line)
        for row in line["rows"] if x is not None else []:
            for against in ("previous", "first", "best"):
                for key, value in (row.get(against) or {}).items():
                    if value is None or x is None:
                        continue
                    title = f"{DRIFT.get(key, key)} {against}"
                    sums.setdefault((title, line["method"]), {}).setdefault(x, []).append(value)
                    image = own.setdefault(line["method"], {}).setdefault(str(row["id"]), {})
                    image.setdefault(title, []).append((x, short(value, 3)))
    pairs = (
        (title, method, [(x, short(sum(values) / len(values))) for x, values in sorted(points.items())])
        for (title, method), points in sums.items()
    )
    return sorted(charts(pairs), key=lambda chart: chart["title"]), own


def final_tables(record: Record) -> list[Part]:
    """What was measured once, in a test or a validation by itself: a table per stage, of its last values."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for line in record.of("values"):
        if during_training(line) or any(name in str(line.get("callback")) for name in ("Drift", "Alarms")):
            continue
        for key, (method, metric) in named(record, line["values"]).items():
            values = found.setdefault(line["stage"], {}).setdefault(method, {})
            values[metric] = short(line["values"][key], 4)
    tables = []
    for stage, rows in found.items():
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        cells = [[method, *(row.get(metric) for metric in metrics)] for method, row in rows.items()]
        tables.append({"title": stage, "head": ["", *metrics], "rows": cells})
    return tables


def costs(record: Record, axis: Axis) -> Part:
    """Seconds, share of the time and megabytes: in total per callback, and over the training."""
    total: dict[str, dict[str, float]] = {}
    points: dict[str, Points] = {}
    for line in record.of("values"):
        seconds = line["values"].get("xai/seconds")
        if seconds is None or "callback" not in line:
            continue
        told = total.setdefault(line["callback"], {"seconds": 0.0, "time": 0.0, "megabytes": 0.0})
        told["seconds"] += seconds
        told["time"] += (
            seconds / line["values"]["xai/share_of_epoch"] if line["values"].get("xai/share_of_epoch") else 0
        )
        told["megabytes"] += line["values"].get("xai/megabytes") or 0
        if (x := axis(line)) is not None:
            points.setdefault(line["callback"], []).append((x, short(seconds)))
    if not total:
        return {}
    time = max(told["time"] for told in total.values())
    seconds = sum(told["seconds"] for told in total.values())
    rows = [
        [name, short(told["seconds"], 3), percent(told["seconds"], time), short(told["megabytes"], 3)]
        for name, told in total.items()
    ]
    return {
        "head": ["callback", "seconds", "share of the time", "MB on disk"],
        "rows": rows,
        "seconds": short(seconds, 3),
        "share": percent(seconds, time),
        "charts": charts(("seconds", name, line) for name, line in points.items()),
    }


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def counted(lines: Iterable[Line], *keys: str) -> list[list[Any]]:
    """How often each combination of these facts occurs, and in which epoch first, the most frequent first."""
    first: dict[tuple[str, ...], Any] = {}
    count: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        facts = tuple(str(line.get(key, "")) for key in keys)
        first.setdefault(facts, line.get("epoch"))
        count[facts] += 1
    return [[*facts, number, first[facts]] for facts, number in count.most_common()]


def randomization(record: Record) -> list[list[Any]]:
    """Rows of the last check: method, similarities, verdict, rule."""
    lines = record.of("randomization")
    return [
        [
            row["method"],
            ", ".join(f"{name} {short(value, 3)}" for name, value in (row.get("similarity") or {}).items()),
            {True: "passed", False: "not passed", None: "undecided"}[row["passed"]],
            row.get("rule", ""),
        ]
        for row in (lines[-1]["rows"] if lines else [])
    ]
