"""A table as text, Markdown, HTML, LaTeX and CSV."""

import html
import math
import textwrap
from collections.abc import Callable

from interpretable_training.files import WIDTH, aligned, csv_text

from .table_data import Cell, TableData

LATEX = {sign: rf"\{sign}" for sign in "_%&#${}"}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "*": "$^*$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}"}
ARROWS = {True: "↑", False: "↓", None: ""}


def records(table: TableData) -> list[dict[str, str | float | int]]:
    """Return one record per method and metric."""
    return [
        {
            **vars(cell),
            "reference": table.reference,
            "direction": table.passports[cell.metric]["direction"],  # type: ignore[dict-item]
            "unit": table.passports[cell.metric]["unit"],  # type: ignore[dict-item]
        }
        for cell in table.cells.values()
    ]


def csv_of(table: TableData) -> str:
    """Return `records` as CSV."""
    rows = records(table)
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def csv_of_images(table: TableData) -> str:
    """Return the number of each image under each metric, one line per image and method."""
    lines: list[list[object]] = [["image", "class", "method", "degenerate", *table.metrics]]
    for method in table.values:
        columns = [table.per_image(method, metric).tolist() for metric in table.metrics]
        flags = table.degenerate[method].int().tolist()
        lines += [
            [image, target, method, flag, *numbers]
            for image, target, flag, *numbers in zip(table.images.tolist(), table.classes.tolist(), flags, *columns)
        ]
    return csv_text(lines)


def text_of(table: TableData) -> str:
    """Return means with intervals, then the differences from the reference, then what both are made of."""
    means = aligned([["", *headings(table)], *body(table, mean_of)])
    differences = aligned([[f"minus {table.reference}", *headings(table)], *body(table, difference_of)[1:]])
    lines = [line for note in notes(table) for line in textwrap.wrap(note, WIDTH)]
    return "\n".join([means, "", differences, "", *lines]) + "\n"


def markdown_of(table: TableData) -> str:
    """Return the same as Markdown."""
    parts = []
    for corner, rows in (("", body(table, mean_of)), (f"minus {table.reference}", body(table, difference_of)[1:])):
        head = [corner, *headings(table)]
        lines = [head, ["---", *["---:"] * len(table.metrics)], *rows]
        parts.append("\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines))
    return "\n\n".join([*parts, "  \n".join(notes(table))]) + "\n"


def html_of(table: TableData) -> str:
    """Return the same as HTML, for notebooks."""
    parts = []
    for corner, rows in (("", body(table, mean_of)), (f"minus {table.reference}", body(table, difference_of)[1:])):
        lines = [_html_row("th", [corner, *headings(table)]), *(_html_row("td", row) for row in rows)]
        parts.append(f"<table>{''.join(lines)}</table>")
    return "".join([*parts, *(f"<p>{html.escape(note)}</p>" for note in notes(table))])


def _html_row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def latex_of(table: TableData) -> str:
    """Return means with intervals as a LaTeX tabular."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))

    rows = [["", *headings(table)], *body(table, mean_of)]
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in rows]
    begin = rf"\begin{{tabular}}{{l{'r' * len(table.metrics)}}}"
    comments = [f"% {' '.join(note.split())}" for note in notes(table)]
    return "\n".join([*comments, begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}", ""])


def headings(table: TableData) -> list[str]:
    """Return names of the metrics with the better direction."""
    return [f"{name} {ARROWS[metric.wants_high]}".strip() for name, metric in table.metrics.items()]


def body(table: TableData, write: Callable[[Cell], str]) -> list[list[str]]:
    """Return one row per method, the reference first and the controls last."""
    others = [name for name in table.values if name != table.reference and name not in table.controls]
    controls = [name for name in table.controls if name != table.reference]
    rows = []
    for name in [table.reference, *others, *controls]:
        label = f"{name} (control)" if name in table.controls else name
        rows.append([label, *(write(table[name, metric]) for metric in table.metrics)])
    return rows


def mean_of(cell: Cell) -> str:
    """Return mean, interval, and a star where it differs from the reference."""
    star = "*" if cell.p < 0.05 else ""
    return f"{_number(cell.mean)}{star} [{_number(cell.low)}, {_number(cell.high)}]"


def difference_of(cell: Cell) -> str:
    """Return difference from the reference and its p-value."""
    p = "<0.001" if cell.p < 0.001 else f"={cell.p:.3f}"
    return f"{cell.difference:+.3g} (p{p})" if not math.isnan(cell.difference) else "-"


def _number(value: float) -> str:
    """Return two decimals, or three digits of what is small."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def notes(table: TableData) -> list[str]:
    """Return how many images, which class, how the intervals were made, and what was left out."""
    images = len(set(table.images.tolist()))
    rows = f" ({len(table)} pairs of image and class)" if len(table) != images else ""
    lines = [
        f"{images} images{rows}, class: {table.facts['target']}. Means with bootstrap 95 % intervals over images "
        f"({table.resamples} draws, seed {table.seed}); * differs from {table.reference}, paired bootstrap p < 0.05."
    ]
    if not table.complete:
        lines.append("Stopped before the end: some images are missing.")
    for method, flags in table.degenerate.items():
        if int(flags.sum()) and method not in table.controls:
            lines.append(f"{method}: {int(flags.sum())} of {len(flags)} maps are constant or not numbers.")
    return lines + left_out(table)


def left_out(table: TableData) -> list[str]:
    """Return how many rows have no number, once for methods and metrics that lack equally many."""
    alike: dict[tuple[int, str], dict[str, list[str]]] = {}
    for cell in table.cells.values():
        if cell.n_invalid:
            reason = table.metrics[cell.metric].why_no_number
            alike.setdefault((cell.n_invalid, reason), {}).setdefault(cell.metric, []).append(cell.method)
    lines = []
    for (n, reason), by_metric in alike.items():
        groups: dict[tuple[str, ...], list[str]] = {}
        for metric, methods_of_metric in by_metric.items():
            groups.setdefault(tuple(methods_of_metric), []).append(metric)
        for methods, metrics in groups.items():
            subject = "all methods" if len(methods) == len(table.curves) > 1 else ", ".join(methods)
            lines.append(f"{subject}, {', '.join(metrics)}: {n} rows {reason} left out.")
    return lines
