"""Findings of a run in words, with their certainty and a remedy to try, for a reader of one file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interpretable_training.files import write_whole

from .class_tables import confusion_parts
from .journal import JournalRun, Line
from .map_distance import DELTA
from .parts import Part, during_training

FILE = "summary.json"
ADVICE = {  # part of an alarm's name -> what to try
    "shortcut": "Open the clusters in the report. Train with BackgroundSwap, or with ExplanationGuidance on masks, and "
    "test on images without the cue.",
    "outside": "Run ShortcutFinder to see which content counts. Train with BackgroundSwap or ExplanationGuidance.",
    "border": "Check padding, resizing and marks at the border of the images; crop them, or train with BackgroundSwap.",
    "alike": "Run RandomizationTest, and try another layer or method: maps of different images are nearly the same.",
    "drift": "Compare the steps in the report's film; lower the learning rate if the explanations should settle.",
}
MORE = "Add ShortcutFinder, ExplanationAlarms and RandomizationTest if they did not run."
OTHER = "Open the report at the first step of the alarm, and compare the maps before and after it."


def summarize(run: JournalRun, data: Part) -> dict[str, Any]:
    """Return facts and findings of a run.

    Args:
        run: The run in its journal.
        data: `page_data` of the run.
    """
    findings = [*_shortcuts(run), *_alarms(data), *_randomization(run), *_stability(data), *_confusions(run, data)]
    findings += [*_empty_maps(run), *_failures(data)]
    return {
        "run": data["run"],
        "model": data["model"],
        "classes": data["classes"],
        "facts": dict(data["facts"]),
        "last_values": _last_values(run),
        "findings": findings or [_finding("Nothing was detected.", "low", "No alarm, failure or finding.", MORE)],
        "not_read": data["missing"],
    }


def write_summary(folder: str | Path, run: JournalRun, data: Part, page: Path) -> None:
    """Write `summary.json` into the folder of the journal, with the path of the page."""
    facts = {**summarize(run, data), "report": str(page)}
    write_whole(Path(folder) / FILE, json.dumps(facts, indent=2) + "\n")


def _finding(what: str, certainty: str, evidence: str, advice: str) -> dict[str, str]:
    return {"what": what, "certainty": certainty, "evidence": evidence, "try": advice}


def _shortcuts(run: JournalRun) -> Iterable[dict[str, str]]:
    """Yield the claims of ShortcutFinder at its last step; a claim has passed its tests of stability and reliance."""
    for line in {str(line["method"]): line for line in run.of("shortcuts")}.values():
        evidence = f"ShortcutFinder with {line['method']}, {_when(line)}: {line.get('message', '')}"
        if line["claimed"]:
            yield _finding("The network uses a shortcut.", "high", evidence, ADVICE["shortcut"])
        else:
            advice = "Small or rare cues are not found; raise max_images of ShortcutFinder to be surer."
            yield _finding("ShortcutFinder found no shortcut.", "medium", evidence, advice)


def _alarms(data: Part) -> Iterable[dict[str, str]]:
    """Yield the alarms; those that were raised more than once are surer."""
    for alarm in data["alarms"]:
        title = alarm["chart"]["title"]
        if title.startswith("shortcut"):
            continue  # reported as a shortcut
        advice = next((text for word, text in ADVICE.items() if word in title), OTHER)
        for raised in alarm["raised"]:
            count, first = raised["count"], raised["first"]
            since = "" if first is None else f", first at {data['axis']} {first:g}"
            evidence = f"Raised {count} time{'s' * (count > 1)}{since}."
            yield _finding(raised["message"] or f"{title} crossed its threshold.", "medium", evidence, advice)


def _randomization(run: JournalRun) -> Iterable[dict[str, str]]:
    """Yield the methods that did not pass the last randomization test."""
    for row in next((line["rows"] for line in reversed(run.of("randomization"))), []):
        if row["passed"] is False:
            similarity = ", ".join(
                f"{name} {value:.2f}" for name, value in (row.get("similarity") or {}).items() if value
            )
            what = f"Maps of {row['method']} hardly depend on the trained weights."
            evidence = f"Randomization test: {similarity or 'not passed'}; rule: {row.get('rule', '')}."
            yield _finding(what, "high", evidence, "Do not judge the model by these maps; use a method that passes.")


def _stability(data: Part) -> Iterable[dict[str, str]]:
    """Yield whether the maps of the panel settled during the training."""
    panel = data["films"]["panel"]
    if panel["total"] < 3 or data["times"] == [] or any(event["stage"] == "explain" for event in panel["events"]):
        return
    method, axis = panel["tracks"][0][0], data["axis"]
    evidence = f"Less than {DELTA:.0%} of the mass of the panel's maps moves between explanation steps."
    if 0 in panel["stable"]:
        what = f"Maps of {method} are stable from {axis} {panel['stable'][0]:g}."
        yield _finding(what, "medium", evidence, "A checkpoint before this step explains its decisions differently.")
    else:
        what, advice = (
            f"Maps of {method} still change at the end of the training.",
            "Train longer, or explain more often.",
        )
        yield _finding(what, "medium", f"{evidence[:-1]} in no final stretch of it.", advice)


def _confusions(run: JournalRun, data: Part) -> Iterable[dict[str, str]]:
    """Yield the pair of classes that is confused most often, if it occurs more than once."""
    for pair in confusion_parts(run)[:1]:
        if len(pair["images"]) > 1:
            true, wrong = (_class_name(pair[key], data["classes"]) for key in ("label", "pred"))
            evidence = f"{len(pair['images'])} images of the panel and the hardest images, at the last step."
            advice = "Compare their maps in the report, section Classes, for what both share."
            yield _finding(f"{true} is predicted as {wrong}.", "low", evidence, advice)


def _empty_maps(run: JournalRun) -> Iterable[dict[str, str]]:
    """Yield the methods with constant maps at their last step."""
    last = {
        str(line["method"]): line for line in run.of("maps") if line.get("group") == "panel" and during_training(line)
    }
    for method, line in last.items():
        count = sum(bool(row.get("degenerate")) for row in line["rows"])
        if count:
            what = f"{count} of {len(line['rows'])} maps of {method} are empty or constant."
            yield _finding(what, "high", _when(line), "Explain the labeled class, or use a method without a ReLU.")


def _failures(data: Part) -> Iterable[dict[str, str]]:
    """Yield failures and skipped parts of the watching callbacks."""
    for callback, reason, count, first in data["failures"]:
        evidence = f"{count} time{'s' * (count > 1)}, first at epoch {first}: {reason}"
        yield _finding(
            f"{callback} failed.", "high", evidence, "See docs/faq.md for the error; training was not affected."
        )
    for callback, what, count, first in data["dropped"]:
        evidence = f"{count} time{'s' * (count > 1)}, first at epoch {first}: {what}"
        advice = "Raise its budget, or explain fewer images."
        yield _finding(f"{callback} skipped parts to stay within its budget.", "high", evidence, advice)


def _last_values(run: JournalRun) -> dict[str, float]:
    """Return the last number of each metric of explanations and of what the project logged."""
    values: dict[str, float] = {}
    for line in run.of("training", "values"):
        values |= {key: value for key, value in line["values"].items() if value is not None}
    return {key: float(f"{value:.5g}") for key, value in values.items()}


def _class_name(label: int, classes: list[Any] | None) -> str:
    return str(classes[label]) if classes and 0 <= label < len(classes) else f"Class {label}"


def _when(line: Line) -> str:
    """Return epoch and step of a line."""
    return ", ".join(f"{key} {line[key]}" for key in ("epoch", "step") if line.get(key) is not None)
