"""A study whose file was damaged, and an Optuna that is too old: a paragraph that names the file and what to do."""

import json
import os
import shutil
import sys

import optuna
import pytest
from support.sweep_cases import sweep, table, write_sweep

JOURNAL = "runs/sweeps/sweep/study.journal"


def lines_of(data):
    return data.splitlines(True)


def with_line(data, at, change):
    """The file with the fields of one line changed."""
    lines = lines_of(data)
    lines[at] = json.dumps({**json.loads(lines[at]), **change}, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


def without(data, name):
    """The file without a field in all lines."""
    lines = [json.loads(line) for line in lines_of(data)]
    return b"".join(
        json.dumps({k: v for k, v in line.items() if k != name}, separators=(",", ":")).encode() + b"\n"
        for line in lines
    )


DAMAGES = {
    "bytes put in": lambda data: data[: len(data) // 2] + b"\xff\xfe\0\x80" + data[len(data) // 2 :],
    "binary": lambda data: bytes(range(256)) * 8,
    "binary without an end of line": lambda data: bytes(range(128, 256)) * 8,
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data + bytes(4096),
    "another's JSON": lambda data: b'{"a": 1}\n{"b": 2}\n',
    "a JSON list": lambda data: b"[1, 2]\n",
    "a text": lambda data: b"not a study\n",
    "a line cut in the middle": lambda data: data[: len(data) // 2] + b"\n" + data[len(data) // 2 :],
    "an unknown code": lambda data: with_line(data, 2, {"op_code": 99}),
    "a code as text": lambda data: with_line(data, 2, {"op_code": "x"}),
    "no trial": lambda data: without(data, "trial_id"),
    "no study": lambda data: without(data, "study_id"),
    "nested without end": lambda data: data + b'{"op_code":' + b"[" * 100_000 + b"\n",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a sweep of four runs that is done."""
    folder = tmp_path_factory.mktemp("done")
    write_sweep(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert sweep() == 0
    return folder


@pytest.fixture
def study(done, tmp_path, monkeypatch):
    """The file of a copy of it."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / JOURNAL


def refused(capfd):
    """The paragraph on stderr."""
    assert sweep() == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert f"expected the study of a sweep in '{JOURNAL}'" in said
    assert "move it away to begin the sweep anew" in said
    assert len(said.strip().splitlines()) == 1
    return said


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_study_is_a_paragraph_and_stays_as_it_is(study, capfd, kind):
    damaged = DAMAGES[kind](study.read_bytes())
    study.write_bytes(damaged)
    refused(capfd)
    assert study.read_bytes() == damaged


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_a_paragraph(study, capfd, kind):
    study.unlink()
    study.mkdir() if kind == "folder" else os.mkfifo(study)
    assert "this is no file" in refused(capfd)


@pytest.mark.parametrize(("share", "left"), [(0.0, 0), (0.5, 1), (0.95, 1)], ids=["empty", "half", "nearly all"])
def test_a_study_that_was_cut_off_goes_on_with_what_is_left(study, capfd, share, left):
    data = study.read_bytes()
    study.write_bytes(data[: int(share * len(data))])
    assert sweep() == 0
    assert sorted(float(row["x"]) for row in table() if row["state"] == "finished") == [0, 1, 2, 3]


def test_an_optuna_that_is_too_old_is_a_paragraph(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path)
    monkeypatch.setattr(optuna, "__version__", "3.6.1")
    for name in [name for name in sys.modules if name.startswith("interpretable_training.sweeps.study")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna.storages.journal", None)  # which came with version 4
    assert sweep() == 2
    said = capfd.readouterr().err
    assert "expected the package optuna, 4 or newer, for sweeps, got 3.6.1; pip install" in said
    assert "Traceback" not in said
