"""The notebook runs from the first cell to the last, and shows what its text says."""

import json
import os

import pytest
from support import pages

NOTEBOOK = pages.ROOT / "docs" / "tutorial.ipynb"


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def result(found, word):
    """The dict of accuracies that a cell returned, which holds `word`."""
    texts = ["".join(o["data"].get("text/plain", "")) for cell in found for o in cell["outputs"] if "data" in o]
    return eval(next(text for text in texts if word in text), {})


def fell_for_it_and_was_mended(found):
    both = result(found, "'after'")
    before, after = both["before"], both["after"]
    return before["same"] > 0.6 > before["none"] and before["swapped"] < 0.3 and min(after.values()) > 0.6


def test_tutorial_has_stored_outputs():
    assert fell_for_it_and_was_mended(cells())
    pictures = [
        o for cell in cells() for o in cell["outputs"] if any(k.startswith("image/") for k in o.get("data", {}))
    ]
    assert len(pictures) == 4
    assert NOTEBOOK.stat().st_size < 400_000
    assert all(cell["execution_count"] == i for i, cell in enumerate(cells(), 1))


@pytest.mark.slow
def test_tutorial_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert fell_for_it_and_was_mended([cell for cell in notebook.cells if cell.cell_type == "code"])
    assert (tmp_path / "runs" / "tutorial" / "report.html").exists()
