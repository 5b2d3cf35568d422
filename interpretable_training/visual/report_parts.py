"""What a journal tells, part by part, as the report draws it: curves, alarms, drift, costs, tables."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from interpretable_training.journal import Line, Record

KEY = re.compile(r"(?:\w+/)?xai/(.+)")  # also that of test, test/xai/...
SPLIT = re.compile(r"(train|training|val|valid|validation|test)[/_](.+)")
FIRST = ("energy", "shortcut", "cue", "object", "border")  # metrics that say where a model looks come first
DRIFT = {"spearman": "rank correlation with the", "shift": "mass shift from the"}
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


def method_and_metric(key: str) -> tuple[str, str] | None:
    """The parts of xai/<method>/<metric>."""
    found = KEY.fullmatch(key)
    method, slash, metric = found[1].partition("/") if found else ("", "", "")
    return (method, metric) if slash else None


def charts(pairs: Iterable[tuple[str, str, Points]], facts: Mapping[str, Part] = {}) -> list[Part]:
    """A chart for each title of (title, label of a line, its points)."""
    found: dict[str, Part] = {}
    for title, label, points in pairs:
        chart = found.setdefault(title, {"title": title, "lines": [], "facts": facts.get(title)})
        chart["lines"].append({"label": label, "points": points})
    return list(found.values())


def metric_charts(record: Record, axis: Axis, drift: bool) -> list[Part]:
    """A chart per metric with a line per method: those of drift, or all others."""
    lines = [line for line in record.of("values") if ("drift" in str(line.get("callback", "")).lower()) == drift]
    named = [(method_and_metric(key), points) for key, points in curves(lines, axis).items()]
    passports = {line["metric"]: line["facts"] for line in record.of("passport")}
    found = charts(((name[1], name[0], points) for name, points in named if name), passports)
    alarmed = {str(line["name"]).rpartition("/")[2] for line in record.of("alarm")}
    return sorted(found, key=lambda chart: (chart["title"] not in alarmed, not any(w in chart["title"] for w in FIRST)))


def training_charts(record: Record, axis: Axis) -> list[Part]:
    """A chart per quantity with a line per split."""
    pairs = []
    for key, points in curves(record.of("training"), axis).items():
        found = SPLIT.fullmatch(key)
        title, label = (found[2], found[1]) if found else (key, key)
        if not key.endswith("_step"):
            pairs.append((title.removesuffix("_epoch"), label, points))
    return sorted(charts(pairs), key=lambda chart: len(chart["lines"]) == 1)


def alarms(record: Record, axis: Axis) -> list[Part]:
    """Each alarm that was raised, with the curves that raised it and its threshold, the one raised most first."""
    raised: dict[str, list[Line]] = {}
    for line in record.of("alarm"):
        raised.setdefault(str(line["name"]), []).append(line)
    known = curves(record.of("values"), axis)
    found = []
    for name, lines in raised.items():
        last = lines[-1]
        pairs = [(key, points) for key, points in known.items() if key == name or key.endswith(f"/{name}")]
        pairs = pairs or [(name, [(x, short(line["value"])) for line in lines if (x := axis(line)) is not None])]
        labels = {key: (method_and_metric(key) or (key,))[0] for key, _ in pairs}
        chart = {
            "title": name,
            "lines": [{"label": labels[key], "points": points} for key, points in pairs],
            "thresholds": [short(last["threshold"])] if last.get("threshold") is not None else [],
        }
        places = [x for line in lines if (x := axis(line)) is not None]
        found.append({"message": last.get("message", ""), "count": len(lines), "places": places, "chart": chart})
    return sorted(found, key=lambda alarm: -alarm["count"])


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
        if not during_training(line):
            for key, value in line["values"].items():
                if name := method_and_metric(key):
                    found.setdefault(line["stage"], {}).setdefault(name[0], {})[name[1]] = short(value, 4)
    return [
        {
            "title": stage,
            "head": ["", *(metrics := list(dict.fromkeys(m for row in rows.values() for m in row)))],
            "rows": [[method, *(row.get(metric) for metric in metrics)] for method, row in rows.items()],
        }
        for stage, rows in found.items()
    ]


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
            "passed" if row["passed"] else "not passed",
            row.get("rule", ""),
        ]
        for row in (lines[-1]["rows"] if lines else [])
    ]
