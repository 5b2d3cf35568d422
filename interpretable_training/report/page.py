"""The report of a run: its journal as one page that needs nothing but a browser.

The page asks no network: a content security policy forbids it, and allows only the page's own script to run. Texts of
the run, such as names of classes, are data for that script, which shows them as text.
"""

import base64
import hashlib
import html
import json
import re
import time
from pathlib import Path
from typing import Any

from interpretable_training.files import write_whole
from interpretable_training.visual.overlay import FLOOR, STRENGTH, color_table

from . import parts
from .film import Film, Pictures
from .journal import Record, plain, read_journal

PAGE = Path(__file__).parent / "static"
SCRIPTS = ("chart.js", "film.js", "page.js")
OTHERS = ("test-panel", "test-worst", "worst")  # films besides that of the panel
SHARE = 0.25  # of the page that these may take where it is short of room


def write_report(folder: str | Path, path: str | Path, max_megabytes: float = 30, run: str | None = None) -> Path:
    """Make the page of a run.

    Args:
        folder: The folder `explanations` of the run.
        path: File to write.
        max_megabytes: Above it, looks are left out, evenly, and the page says so.
        run: `Journal.run` of the run; None for the one that wrote last.
    """
    record = read_journal(folder, run)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(page(record, max_megabytes * 1e6)))
    return path


def page(record: Record, size: float) -> parts.Part:
    """All that the page shows, in at most `size` bytes unless the parts that cannot be thinned take more."""
    axis = parts.Axis(record)
    drift_charts, drift = parts.drift(record, axis)
    started = record.of("run")
    settings: dict[str, Any] = {}
    for line in started:
        settings |= line.get("settings") or {}
    told = {
        "run": record.lines[-1].get("run", "") if record.lines else "",
        "axis": axis.name,
        "model": next((line["model"] for line in reversed(started) if line.get("model")), "A run"),
        "classes": next((line["classes"] for line in reversed(started) if line.get("classes")), None),
        "times": [record.lines[0]["time"], record.lines[-1]["time"]] if record.lines else [],
        "alarms": parts.alarms(record, axis),
        "metrics": parts.metric_charts(record, axis),
        "training": parts.training_charts(record, axis),
        "drift": {"charts": drift_charts, "images": drift},
        "final": parts.final_tables(record),
        "cost": parts.costs(record, axis),
        "failures": parts.counted(record.of("failure"), "callback", "reason"),
        "dropped": parts.counted(record.of("dropped"), "callback", "what"),
        "randomization": parts.randomization(record),
        "probe": next((line["probe"] for line in reversed(started) if line.get("probe")), []),
        "settings": settings,
        "missing": list(record.missing),
        "overlay": {"strength": STRENGTH, "floor": FLOOR, "colors": color_table().mul(255).flatten().tolist()},
    }
    rest = len(render(told).encode("utf-8", "replace")) + 5000  # the headline and what is told of the film itself
    told |= films(record, axis, size - rest)
    told["facts"] = headline(told, record)
    return told


def films(record: Record, axis: parts.Axis, room: float) -> parts.Part:
    """Panel, worst images and those of a test, with the pictures that they need."""
    pictures = Pictures(record)
    panel = Film(record, "panel", axis, pictures)
    left = max(SHARE * room, room - panel.size())
    films = {"panel": panel}
    for group in OTHERS:
        free = [name for film in films.values() for name in film.ids()]
        films[group] = Film(record, group, axis, pictures, free)
        films[group].thin(left)
        left -= films[group].size()
        room -= films[group].size()
    panel.thin(room)
    shown = {name: pictures[name] for film in films.values() for name in film.ids()}
    return {"films": {group: film.part() for group, film in films.items()}, "images": shown}


def headline(told: parts.Part, record: Record) -> list[tuple[str, str]]:
    """The numbers at the top."""
    epochs = {line["epoch"] for line in record.lines if line.get("epoch") is not None and parts.during_training(line)}
    panel = told["films"]["panel"]
    facts = [("epochs", str(len(epochs)))] if epochs else []
    for chart in told["training"]:
        if "accuracy" in chart["title"].lower() or chart["title"] in ("acc", "mAP"):
            line = chart["lines"][-1]
            values = [y for _, y in line["points"] if y is not None]
            facts.append((f"{line['label']} {chart['title']}", f"{values[-1]:.3g}"))
    if panel["events"]:
        images = {name for event in panel["events"] for s in event["strips"].values() for name in s["rows"]["id"]}
        pictures = panel["events"][0]["stage"] == "explain"
        facts.append(("pictures" if pictures else "images watched", str(len(images))))
        facts += [] if pictures else [("looks", str(panel["total"]))]
    if told["cost"]:
        facts.append(("spent on watching", f"{told['cost']['seconds']:g} s, {told['cost']['share']}"))
    facts += (
        [("alarms", str(sum(raised["count"] for alarm in told["alarms"] for raised in alarm["raised"])))]
        if told["alarms"]
        else []
    )
    facts += [("failures", str(sum(row[2] for row in told["failures"])))] if told["failures"] else []
    return facts


def as_data(told: parts.Part) -> str:
    """JSON that stays within its element whatever the texts are: no tag can begin in it."""
    text = json.dumps(plain(told), separators=(",", ":"), ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()  # names out of broken file names hold halves of characters
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(told: parts.Part) -> str:
    """Put data, style and script into the page."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    filled = {
        "title": html.escape(f"{told['model']}: explanations over a training"),
        "run": html.escape(told["run"]),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "style": style,
        "style_digest": digest(style),
        "script": script,
        "script_digest": digest(script),
        "data": as_data(told),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)  # in one pass: data is never a template


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
