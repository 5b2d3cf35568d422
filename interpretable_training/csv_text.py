"""Lines as CSV that a spreadsheet may open."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to calculate


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """The lines; text that a spreadsheet would calculate begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([as_text(cell) for cell in line] for line in lines)
    return out.getvalue()


def as_text(cell: Any) -> Any:
    """The cell, quoted if it is text that looks like a formula; numbers stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}".replace("\r", " ")  # of which readers make the end of a line
    return cell
