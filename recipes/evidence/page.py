"""Put the tables of the parts into docs/evidence.md, between `<!-- NAME -->` and `<!-- end -->`; the words stay."""

import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

import interpretable_training
from interpretable_training.files import write_whole


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table; short ones are filled with empty cells.

    >>> print(markdown([["a", "b"], ["1"]]))
    | a | b |
    |---|---|
    | 1 |  |
    """
    lines = [f"| {' | '.join([*row, *[''] * (len(rows[0]) - len(row))])} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def machine() -> str:
    """Return versions, processor and date in words."""
    versions = f"interpretable-training {interpretable_training.__version__}, torch {torch.__version__}"
    return f"{versions}, Python {platform.python_version()}, {platform.machine()}, {date.today().isoformat()}"


def fill_page(page: Path, name: str, content: str) -> None:
    """Replace what the page has between the marks of `name`; a page without them stays as it is."""
    if page.exists():
        text = page.read_text(encoding="utf-8")
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        write_whole(page, marks.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text))
