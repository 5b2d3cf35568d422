"""The report of a run: its journal as one HTML page that needs only a browser.

A content security policy forbids access to the network and allows only the page's own script to run. Texts of the run,
for example names of classes, are data for that script, which shows them as text.
"""

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interpretable_training.files import write_whole
from interpretable_training.visual.overlay import FLOOR, STRENGTH, color_table

from . import parts
from .class_tables import class_table, confusion_parts
from .film import EmbeddedPictures, Film
from .journal import JournalRun, plain, read_journal
from .shortcut_section import shortcut_parts
from .summary import write_summary

PAGE = Path(__file__).parent / "static"
SCRIPTS = ("chart.js", "film.js", "sections.js")  # of all pages, before the script of the page
OTHERS = ("test-panel", "test-hardest", "hardest")  # films other than that of the panel
SHARE = 0.25  # of the page for these films when not all steps fit


def write_report(folder: str | Path, path: str | Path, max_megabytes: float = 30, run: str | None = None) -> Path:
    """Write the report of a run, and `summary.json` with findings in words next to its journal; return its path.

    >>> from interpretable_training.report.journal import Journal
    >>> Journal("explanations").write("run", model="Classifier", classes=["cat", "dog"])
    >>> write_report("explanations", "report.html").name
    'report.html'

    Args:
        folder: The folder `explanations` of the run.
        path: File to write.
        max_megabytes: Size above which explanation steps are left out, evenly; the page states how many.
        run: `Journal.run` of the run; None for the run that wrote last.
    """
    read = read_journal(folder, run)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = page_data(read, max_megabytes * 1e6)
    write_whole(path, fill_template(data))
    write_summary(folder, read, data, path)
    return path


def page_data(run: JournalRun, size: float) -> parts.Part:
    """Return all data of the page, in at most `size` bytes unless the parts that cannot be thinned take more."""
    axis = parts.Axis(run)
    drift_charts, drift = parts.drift(run, axis)
    started = run.of("run")
    settings: dict[str, Any] = {}
    for line in started:
        settings |= line.get("settings") or {}
    data = {
        "run": run.lines[-1].get("run", "") if run.lines else "",
        "axis": axis.name,
        "model": next((line["model"] for line in reversed(started) if line.get("model")), "A run"),
        "classes": next((line["classes"] for line in reversed(started) if line.get("classes")), None),
        "times": [run.lines[0]["time"], run.lines[-1]["time"]] if run.lines else [],
        "alarms": parts.alarms(run, axis),
        "metrics": parts.metric_charts(run, axis),
        "training": parts.training_charts(run, axis),
        "drift": {"charts": drift_charts, "images": drift},
        "final": parts.final_tables(run),
        "cost": parts.costs(run, axis),
        "failures": parts.count_lines(run.of("failure"), "callback", "reason"),
        "dropped": parts.count_lines(run.of("dropped"), "callback", "what"),
        "randomization": parts.randomization(run),
        "shortcuts": shortcut_parts(run),
        "by_class": class_table(run),
        "confusions": confusion_parts(run),
        "probe": next((line["probe"] for line in reversed(started) if line.get("probe")), []),
        "settings": settings,
        "missing": list(run.missing),
        "overlay": overlay_style(),
    }
    rest = len(fill_template(data).encode("utf-8", "replace")) + 5000  # headline and scales of the films
    data |= embed_films(run, axis, size - rest, OTHERS)
    data["facts"] = _headline(data, run)
    return data


def embed_films(run: JournalRun, axis: parts.Axis, room: float, others: Sequence[str] = ()) -> parts.Part:
    """Return the films of the panel and of other groups, with their pictures, in at most `room` bytes."""
    pictures = EmbeddedPictures(run)
    panel = Film(run, "panel", axis, pictures)
    left = max(SHARE * room, room - panel.size())
    films = {"panel": panel}
    for group in others:
        free = [name for film in films.values() for name in film.ids()]
        films[group] = Film(run, group, axis, pictures, free)
        films[group].thin(left)
        left -= films[group].size()
        room -= films[group].size()
    panel.thin(room)
    shown = {name: pictures[name] for film in films.values() for name in film.ids()}
    return {"films": {group: film.part() for group, film in films.items()}, "images": shown}


def _headline(data: parts.Part, run: JournalRun) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page."""
    epochs = {line["epoch"] for line in run.lines if line.get("epoch") is not None and parts.during_training(line)}
    panel = data["films"]["panel"]
    facts = [("epochs", str(len(epochs)))] if epochs else []
    for chart in data["training"]:
        if "accuracy" in chart["title"].lower() or chart["title"] in ("acc", "mAP"):
            line = chart["lines"][-1]
            values = [y for _, y in line["points"] if y is not None]
            facts.append((f"{line['label']} {chart['title']}", f"{values[-1]:.3g}"))
    if panel["events"]:
        images = {name for event in panel["events"] for s in event["strips"].values() for name in s["rows"]["id"]}
        pictures = panel["events"][0]["stage"] == "explain"
        facts.append(("pictures" if pictures else "panel images", str(len(images))))
        facts += [] if pictures else [("explanation steps", str(panel["total"]))]
        facts += [(f"maps stable from {data['axis']}", f"{panel['stable'][0]:g}")] if 0 in panel["stable"] else []
    if data["cost"]:
        facts.append(("cost of watching", f"{data['cost']['seconds']:g} s, {data['cost']['share']}"))
    facts += (
        [("alarms", str(sum(raised["count"] for alarm in data["alarms"] for raised in alarm["raised"])))]
        if data["alarms"]
        else []
    )
    facts += [("failures", str(sum(row[2] for row in data["failures"])))] if data["failures"] else []
    return facts


def _to_json(data: parts.Part) -> str:
    """Return JSON in which no text can begin an HTML tag."""
    text = json.dumps(plain(data), separators=(",", ":"), ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()  # names from broken file names contain half characters
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def overlay_style() -> parts.Part:
    """Return what the page needs to draw maps as `overlay` does."""
    return {"strength": STRENGTH, "floor": FLOOR, "colors": color_table().mul(255).flatten().tolist()}


def fill_template(
    data: parts.Part, title: str = "{model}: explanations during training", script: str = "page.js"
) -> str:
    """Return a page with data, style and scripts, of which `script` is the last."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    code = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in (*SCRIPTS, script))
    filled = {
        "title": html.escape(title.replace("{model}", str(data["model"]))),
        "run": html.escape(data["run"]),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "style": style,
        "style_digest": _digest(style),
        "script": code,
        "script_digest": _digest(code),
        "data": _to_json(data),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template)  # one pass: data is never a template


def _digest(text: str) -> str:
    """Return the digest of a script or style for the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
