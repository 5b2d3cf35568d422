"""The command compare: two runs as a page and JSON, with an exit code for continuous integration."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from interpretable_training.files import write_whole
from interpretable_training.mistakes import MistakeError, require_writable
from interpretable_training.report.comparison import compare_runs
from interpretable_training.report.comparison_page import write_comparison

from .errors import print_line, printable


def compare(before: str, after: str, output: str = "comparison.html", limits: Sequence[str] = ()) -> int:
    """Write the page and the JSON of a comparison, print a summary, and return 1 if a limit is exceeded.

    Args:
        before: Folder of a run, or a checkpoint in it.
        after: The run that is judged.
        output: The page; the JSON lies next to it.
        limits: Words NAME=NUMBER; see `Comparison.violations`.
    """
    allowed = dict(map(read_limit, limits))
    page = Path(output)
    if page.suffix != ".html":
        raise MistakeError(f"expected an HTML file as --output, got {output!r}; pass one such as comparison.html.")
    require_writable(page.parent)
    comparison = compare_runs(before, after)
    failed = comparison.violations(allowed)
    write_comparison(comparison, page, failed)
    facts = {"limits": allowed, "failed": failed, **comparison.facts()}
    write_whole(page.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    for row in comparison.pairs:
        interval = f"[{row['low']:+.3g}, {row['high']:+.3g}]"
        print_line(printable(f"  {row['name']:<40} {row['before']:>9.4g} {row['after']:>9.4g}  {interval}"))
    for text in comparison.missing:
        print_line(printable(f"  not compared: {text}"))
    for text in failed:
        print_line(printable(f"  limit exceeded: {text}"))
    print_line(f"  page {page}, numbers {page.with_suffix('.json')}")
    return int(bool(failed))


def read_limit(word: str) -> tuple[str, float]:
    """Return name and number of a limit.

    >>> read_limit("energy_on_object=0.05")
    ('energy_on_object', 0.05)
    """
    name, equals, text = word.rpartition("=")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not equals or not name or not number >= 0:
        raise MistakeError(f"expected a limit NAME=NUMBER, of at least 0, got {word!r}; pass such as moved=0.2.")
    return name, number
