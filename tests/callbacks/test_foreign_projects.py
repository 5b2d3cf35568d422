"""The callbacks in projects that know nothing of this package, run from outside of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = (
    "--trainer.max_epochs=2 --trainer.enable_progress_bar=false --trainer.accelerator=cpu "
    "--trainer.logger=CSVLogger --trainer.logger.save_dir=."
)


@pytest.fixture
def project(tmp_path):
    """A folder with the project alone, from which commands run."""
    shutil.copy(ROOT / "tests/support/foreign_project.py", tmp_path / "project.py")

    def run(*words):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    run.folder = tmp_path
    return run


def keys_of(folder):
    """Names of the values in the only journal below a folder."""
    (journal,) = folder.rglob("journal.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert not [line for line in lines if line["kind"] == "failure"]
    return {key for line in lines if line["kind"] == "values" for key in line["values"]}


def readme_example():
    """The block of the README under "Three lines"."""
    text = (ROOT / "README.md").read_text()
    return re.search(r"## Three lines\n.*?```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "as_dict"), [("TupleModule", False), ("DictModule", True)])
def test_the_readme_example_runs_in_a_foreign_project(project, module, as_dict):
    example = readme_example()
    assert len(example.splitlines()) <= 10
    before = f"from project import Data, {module}\nmodule, data = {module}(), Data({as_dict})\n"
    (project.folder / "main.py").write_text(before + example)
    project("main.py")
    assert "xai/gradcam/average_gain" in keys_of(project.folder)
    assert list(project.folder.rglob("report.html"))
    assert len(list(project.folder.rglob("panels/panel-*.png"))) > 0


@pytest.mark.slow
def test_another_command_line_takes_callbacks_by_class_path(project):
    more = "--trainer.callbacks+=interpretable_training.callbacks"
    words = f"{more}.ExplanationLogger --trainer.callbacks.max_images=4 {more}.InterpretabilityMetrics {FEW}".split()
    project("project.py", "fit", "--model=TupleModule", "--data=Data", *words)
    assert "xai/gradcam/insertion" in keys_of(project.folder)


@pytest.mark.slow
def test_an_overlay_file_adds_callbacks_to_a_foreign_project(project):
    (project.folder / "watch.yaml").write_text(
        "trainer:\n  callbacks+:\n"
        "  - class_path: interpretable_training.callbacks.ExplanationLogger\n"
        "    init_args: {methods: {cam: {class_path: interpretable_training.attribution.LayerCAM}}, max_images: 4}\n"
        "  - class_path: interpretable_training.callbacks.ExplanationDrift\n"
    )
    project(
        "project.py",
        "fit",
        "--model=DictModule",
        "--data=Data",
        "--data.as_dict=true",
        *FEW.split(),
        "-c",
        "watch.yaml",
    )
    assert "xai/gradcam/similarity_previous" in keys_of(project.folder)
    assert list(project.folder.rglob("maps/*cam*.png"))
