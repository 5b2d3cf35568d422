"""The page that lists what `layer="auto"` chooses says what it does."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "make_layer_table.py"


@pytest.mark.slow
def test_the_page_lists_what_auto_chooses():
    spec = importlib.util.spec_from_file_location("make_layer_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table().splitlines() == script.FILE.read_text().splitlines()
