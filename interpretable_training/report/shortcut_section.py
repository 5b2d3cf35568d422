"""Part of the report that shows clusters of images and the shortcuts among them."""

from typing import Any

from .film import embed_picture
from .journal import JournalRun, Line
from .parts import Part, round_for_page

WIDE = 1100  # pixels of a sheet on the page
COLUMNS = {
    "members": "images",
    "purity": "purity",
    "coverage": "coverage",
    "reliance": "reliance",
    "stability": "stability",
    "accuracy": "accuracy",
    "loss": "loss",
    "score": "score",
}


def shortcut_parts(run: JournalRun) -> list[Part]:
    """Return the clusters of each method at its last explanation step: message, table, sheets and class shares."""
    last = {str(line["method"]): line for line in run.of("shortcuts")}
    clusters = run.of("cluster")
    classes = next((line["classes"] for line in reversed(run.of("run")) if line.get("classes")), None)
    parts = []
    for method, line in last.items():
        shown = [each for each in clusters if _belongs(each, line)]
        parts.append(
            {
                "method": method,
                "claimed": line["claimed"],
                "message": line.get("message", ""),
                "head": ["cluster", "class", *COLUMNS.values(), "shortcut"],
                "rows": [_row(each, classes) for each in shown],
                "sheets": [_sheet(each, classes) for each in shown if "file" in each],
            }
        )
    return parts


def _belongs(cluster: Line, line: Line) -> bool:
    """Whether a cluster was found in the explanation step of a line."""
    return all(cluster.get(key) == line.get(key) for key in ("method", "epoch", "step", "stage"))


def _row(line: Line, classes: list[Any] | None) -> list[Any]:
    """Return the row of a cluster in the table."""
    facts = line["facts"]
    numbers = [round_for_page(facts.get(name), 3) for name in COLUMNS]
    return [line["cluster"], _name(line.get("label"), classes), *numbers, "yes" if line["claimed"] else "no"]


def _sheet(line: Line, classes: list[Any] | None) -> Part:
    """Return the picture of a cluster, with the share of its images in each class, the largest first."""
    shares = sorted(enumerate(line.get("shares") or []), key=lambda pair: -(pair[1] or 0))[:6]
    return {
        "cluster": line["cluster"],
        "claimed": line["claimed"],
        "src": embed_picture(line["file"], WIDE),
        "shares": [[_name(label, classes), round_for_page(share, 3)] for label, share in shares if share],
    }


def _name(label: int | None, classes: list[Any] | None) -> str:
    """Return the name of a class."""
    if label is None:
        return "none"
    return str(classes[label]) if classes and 0 <= label < len(classes) else f"class {label}"
