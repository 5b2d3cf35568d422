"""Tables as text with aligned columns, and as CSV that a spreadsheet opens safely."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 120  # of a terminal
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to calculate


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Return lines of CSV; text that a spreadsheet would calculate begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([as_text(cell) for cell in line] for line in lines)
    return out.getvalue()


def as_text(cell: Any) -> Any:
    """Return the cell, with an apostrophe if it is text that looks like a formula; numbers stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}".replace("\r", " ")  # which readers take for the end of a line
    return cell


def aligned(rows: list[list[str]]) -> str:
    """Return columns of equal width, in several blocks if they do not fit on a line."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    blocks: list[list[int]] = [[]]
    for column, width in enumerate(widths[1:], 1):
        used = widths[0] + sum(2 + widths[other] for other in blocks[-1])
        if blocks[-1] and used + 2 + width > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in block)]).rstrip() for row in rows
        )
        for block in blocks
    )
