"""Files for those who host the repository: they parse, and name commands, files and versions that exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import interpretable_training
from interpretable_training.cli.main import build_parser

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def steps():
    """The steps of all jobs, with the file and the job."""
    return [
        (path.name, name, step)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text())["jobs"].items()
        for step in job["steps"]
    ]


def test_workflows_run_commands_that_exist():
    commands = [part.strip() for _, _, step in steps() if "run" in step for part in step["run"].split("&&")]
    words = [shlex.split(command) for command in commands]
    assert {word[1] for word in words if word[0] == "make"} >= {"test", "test-all", "lint", "wheel-check", "docs"}
    for program, *rest in words:
        if program == "make":
            assert set(rest) <= TARGETS
        elif program == "python":
            assert (ROOT / rest[0]).is_file()
        else:
            assert (program, rest[0]) == ("sudo", "apt-get")


def test_workflows_check_out_set_up_python_and_keep_rights_small():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the key "on" as true
        for job in workflow["jobs"].values():
            uses = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
            assert uses[:2] == ["actions/checkout", "actions/setup-python"]


def test_workflows_run_every_python_of_the_classifiers():
    (matrix,) = (
        job["strategy"]["matrix"]["python"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        if "strategy" in job
    )
    named = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT))
    assert len(named) >= 3
    assert named <= set(matrix)
    assert f'requires-python = ">={matrix[0]}"' in PYPROJECT


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_distinct_fields_with_labels(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) >= 2
    assert all(field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"])


def test_dependabot_watches_actions_and_packages():
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip"}


def test_hooks_before_commits_call_tools_of_the_lint_extra():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert [words[0] for words in entries] == ["ruff", "ruff", "python"]
    assert all(word in PYPROJECT for word in ("ruff>=", "pytest>="))
    assert (ROOT / entries[2][-1]).is_file()


def test_citation_names_the_version_and_papers_that_the_pages_cite():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == interpretable_training.__version__
    assert f'license = "{citation["license"]}"' in PYPROJECT
    cited = (ROOT / "docs" / "citing.md").read_text()
    assert all(reference["url"] in cited for reference in citation["references"])


def test_llms_file_names_files_and_commands_that_exist():
    text = (ROOT / "llms.txt").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).is_file()] == []
    parser = build_parser()
    for words in re.findall(r"`interpretable-training ([^`]+)`", text):
        if not words.startswith("--"):
            parser.parse_known_args(shlex.split(words))  # exits where a command or one of its options does not exist
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "llms.txt", "exec")


def test_script_of_interpreters_knows_this_one_and_the_lower_bounds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    import interpreters

    bounds = interpreters.lowest_versions().splitlines()
    assert "torch==2.6" in bounds
    assert len(bounds) == len(re.findall(r">=", PYPROJECT[: PYPROJECT.index("[project.optional")])) - 2  # build, Python
    assert all(Path(path).exists() for path in interpreters.find_interpreters().values())
    assert set(interpreters.find_interpreters()) <= {f"3.{minor}" for minor in interpreters.MINORS}
    monkeypatch.delitem(sys.modules, "interpreters")


@pytest.mark.slow
def test_benchmark_of_gpus_ends_well_without_one():
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py")]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No GPU: ")


@pytest.mark.slow
def test_benchmark_of_gpus_measures_each_row():
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py"), "--device", "cpu"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 15, rows
    assert all(cells[2].strip().endswith(" ms") for cells in rows)
