"""The pages that show the table of the sanity checks show that of the recipe."""

import importlib.util
import sys
from pathlib import Path

import pytest

from interpretable_training.metrics import DataRandomization, InputInvariance, ParameterRandomization
from interpretable_training.recipes.sanity_checks import EXPECTED, READ_BIASES, checked_methods

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_sanity_table", DOCS / "make_sanity_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def between_marks(page, mark):
    _, text, _ = (DOCS / page).read_text(encoding="utf-8").split(mark)
    return text.strip()


def test_the_pages_have_the_methods_and_checks_of_the_recipe_and_the_same_verdicts(script):
    rows = [line.strip("| ").split(" | ") for line in between_marks("metrics.md", script.MARK).splitlines()]
    table = {row[0]: row[1:] for row in rows[2 : 2 + len(checked_methods())]}
    assert (
        rows[0][-3:] == list(EXPECTED) == [c.name for c in (ParameterRandomization, DataRandomization, InputInvariance)]
    )
    assert list(table) == list(checked_methods())
    lines = between_marks("recipes.md", script.MARK).splitlines()
    text = {line.split("  ")[0]: line.split() for line in lines[2 : 2 + len(checked_methods())]}
    for name, cells in table.items():
        assert " ".join(text[name]).endswith(" ".join(cells))
    for check, said in EXPECTED.items():  # a star where the cell says something else
        for name, verdict in said.items():
            cell = table[name][list(EXPECTED).index(check)]
            assert ("*" in cell) == (not cell.startswith(verdict))


def test_methods_that_read_biases_are_those_that_split_the_score_into_them():
    assert {name for name, method in checked_methods().items() if isinstance(method, READ_BIASES)} == {
        "fullgrad",
        "tgrad",
    }


def test_a_run_of_the_recipe_fills_both_pages_and_nothing_else(script, tmp_path, monkeypatch):
    for page in ("metrics.md", "recipes.md"):
        (tmp_path / page).write_text(f"a\n{script.MARK}\nold\n{script.MARK}\nb\n")
    (tmp_path / "sanity.md").write_text("| table |\n")
    (tmp_path / "sanity.txt").write_text("text ↓\n", encoding="utf-8")
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_sanity_table.py", str(tmp_path)])
    script.main()
    assert (tmp_path / "metrics.md").read_text() == f"a\n{script.MARK}\n| table |\n{script.MARK}\nb\n"
    filled = (tmp_path / "recipes.md").read_text(encoding="utf-8")
    assert filled == f"a\n{script.MARK}\n```text\ntext ↓\n```\n{script.MARK}\nb\n"
