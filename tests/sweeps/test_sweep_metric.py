import csv
import json
import struct
from pathlib import Path

import pytest
import yaml
from support.sweep_cases import sweep, table, written

from interpretable_training.cli import main
from interpretable_training.sweeps._compat import BLOCK, wandb_records, wandb_rows
from interpretable_training.sweeps.metric import FILE, Reports

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = ["--trainer.max_epochs=2", "--data.image_size=16", "--data.n_train=12", "--data.n_val=12"]
TINY += ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_complete_lines_are_read_once(folder):
    reports = Reports(folder / "m", "a")
    assert reports.read() == []
    (folder / "m").write_bytes(b'{"a": 1, "b": 2}\n{"a": 2')
    assert reports.read() == [1]
    with (folder / "m").open("ab") as file:
        file.write(b'}\nnonsense\n[]\n{"a": "x"}\n{"c": 3}\n{"a": true}\n{"a": 3.5}\n')
    assert reports.read() == [2, 3.5]
    assert reports.read() == []
    assert reports.values == [1, 2, 3.5]
    assert reports.names == {"a", "b", "c"}


@pytest.mark.parametrize("fast", [False, True])
def test_fit_writes_metrics_after_each_validation(folder, monkeypatch, fast):
    monkeypatch.setenv(FILE, str(folder / "m"))
    words = ["--config", str(CONFIGS / "baseline.yaml"), *TINY, *QUIET, f"--trainer.fast_dev_run={int(fast)}"]
    main(["fit", *words])
    rows = [json.loads(line) for line in (folder / "m").read_text().splitlines()]
    assert len(rows) == (2 if fast else 4)  # validation and training of each epoch, nothing of the sanity check
    assert all(set(row) == {"val/loss", "val/accuracy"} for row in rows[::2])
    assert {"train/loss"} <= set(rows[1])
    if not fast:
        with next(folder.rglob("metrics.csv")).open() as file:
            logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        assert [row["val/loss"] for row in rows[::2]] == pytest.approx(logged)


def test_fit_outside_of_sweep_writes_nothing(folder, monkeypatch):
    monkeypatch.delenv(FILE, raising=False)
    main(["fit", "--config", str(CONFIGS / "baseline.yaml"), *TINY, *QUIET, "--trainer.fast_dev_run=1"])
    assert list(folder.rglob("*")) == []


def framed(records):
    """A file as W&B writes it: records cut at the ends of blocks, ends too short for a header filled up."""
    data = b":W&B\xe1\xbe\0"
    for record in records:
        first = True
        while first or record:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += b"\0" * room
                room = BLOCK
            part, record = record[: room - 7], record[room - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    return data


@pytest.mark.parametrize("length", [0, 1, BLOCK - 14, BLOCK - 15, BLOCK - 17, BLOCK, 3 * BLOCK])
def test_records_are_joined_across_blocks(length):
    records = [b"a" * length, b"bc", b"d" * 40000, b"e"]
    data = framed(records)
    assert list(wandb_records(data)) == records
    assert list(wandb_records(data[:-3])) == records[:-1]  # of a run that was killed


WANDB = """
import sys, wandb
x = float(sys.argv[1].split("=")[1])
with wandb.init() as run:
    for i in range(3):
        run.log({"val/loss": x + 3 - i, "text": "long" * 20000, "nested": {"a": i}})
    run.summary["best"] = x / 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["val/loss", "best", "nested.a"])
def test_programs_that_only_use_wandb_are_read(folder, metric):
    (folder / "program.py").write_text(WANDB)
    content = {"program": "program.py", "method": "grid", "parameters": {"x": {"values": [1, 4]}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**content, "metric": {"name": metric}}))
    assert sweep() == 0
    expected = {"val/loss": {"1": 2.0, "4": 5.0}, "best": {"1": 0.5, "4": 2.0}, "nested.a": {"1": 2.0, "4": 2.0}}
    assert {row["x"]: float(row[metric]) for row in table()} == expected[metric]
    file = next(Path("runs/sweeps/sweep/run_0000").glob("wandb/offline-run-*/*.wandb"))
    x = written(0, "parameters.json")[0]["x"]
    assert [row["val/loss"] for row, final in wandb_rows(file) if not final] == [x + 3, x + 2, x + 1]


@pytest.mark.slow
def test_sweep_of_repository_runs_with_small_sizes(folder):
    """Two of the six runs on digits, by way of the command line that the file has."""
    content = yaml.safe_load((CONFIGS / "sweeps" / "guided_gradient_digits.yaml").read_text())
    assert "guided_gradient_digits" in content["command"]
    small = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--data.image_size=16"]
    content["command"][-1:-1] = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", *small]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert sweep("--count", 2, "--jobs", 2) == 0
    rows = table()
    assert [row["state"] for row in rows] == ["finished"] * 2
    for row in rows:
        lines = written(int(row["run"]))
        assert [line["val/accuracy"] for line in lines if "val/accuracy" in line] == [float(row["val/accuracy"])]
        (file,) = Path("runs").glob(f"wandb/offline-run-*-{int(row['run'])}/*.wandb")
        logged = [r["val/accuracy"] for r, final in wandb_rows(file) if "val/accuracy" in r and not final]
        assert logged == pytest.approx([float(row["val/accuracy"])])
