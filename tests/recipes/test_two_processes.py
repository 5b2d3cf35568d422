"""The YAML of recipes in two processes, as on two machines: training, what watches it, and evaluate."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
SIZES = {"image_size": 32, "n_train": 96, "n_val": 24, "n_test": 12, "batch_size": 12}


def run(command, stem, *words):
    """Run a configuration; on CPUs two processes talk by gloo."""
    small = [f"--data.{key}={value}" for key, value in SIZES.items()]
    start = [sys.executable, "-m", "interpretable_training", command, "--config", str(CONFIGS / f"{stem}.yaml")]
    done = subprocess.run([*start, *small, *words], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def numbers(path):
    """name -> the numbers that were logged, without times."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows if row[key]] for key in rows[0] if not key.startswith("cost/")}


@pytest.mark.slow
def test_a_training_and_all_that_watch_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("fit", "shortcut", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", *TWO)
    assert "distributed_backend=gloo" in done.stderr
    run_folder = tmp_path / "runs" / "shortcut" / "version_0"
    written = {path.relative_to(run_folder.parent).parts[0] for path in run_folder.parent.rglob("*") if path.is_file()}
    assert written == {"version_0"}  # one process writes
    assert {"curves.png", "report.html", "metrics.csv", "config.yaml"} <= {path.name for path in run_folder.iterdir()}
    logged = numbers(run_folder / "metrics.csv")
    for name in ("average_drop", "energy_on_cue", "energy_on_object"):
        assert logged[f"xai/gradcam/{name}"]
    steps = 96 // 12 // 2
    assert max(map(int, logged["step"])) == 2 * steps - 1  # the batches are shared
    assert [*(run_folder / "checkpoints").glob("*.ckpt")]

    (checkpoint,) = (run_folder / "checkpoints").glob("*.ckpt")
    tables = []
    for name, words in {"one": ["--trainer.accelerator=cpu"], "two": TWO}.items():
        run("evaluate", "evaluate", f"--ckpt_path={checkpoint}", f"--output={name}", "--max_images=12", *words)
        tables.append((tmp_path / name / "table.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_stream_beside_a_backbone_with_guided_gradients(tmp_path, monkeypatch):
    """The backbone is trained before the processes part, once."""
    monkeypatch.chdir(tmp_path)
    short = ["image_size=32", "n_train=48", "max_epochs=1"]
    backbone = [f"--model.network.{word}" for word in short]
    run("fit", "ca_stream_guided_gradient", "--trainer.max_epochs=1", *backbone, *TWO)
    assert (tmp_path / "runs" / "ca_stream" / "guided_tiny_cnn.pt").exists()
    logged = numbers(tmp_path / "runs" / "ca_stream" / "version_0" / "metrics.csv")
    assert logged["val/gap_accuracy"]


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [f"--data.{key}={value}" for key, value in SIZES.items()]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "interpretable_training", "fit"]
    words = ["--config", str(CONFIGS / "baseline.yaml"), "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    done = subprocess.run([*start, *words, *small, *TWO], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = numbers(tmp_path / "runs" / "baseline" / "version_0" / "metrics.csv")
    assert max(map(int, logged["step"])) == 96 // 12 // 2 - 1


@pytest.mark.slow
def test_slurm_starts_the_processes(tmp_path, monkeypatch):
    """Processes get the variables that srun sets for each task."""
    monkeypatch.chdir(tmp_path)
    small = [f"--data.{key}={value}" for key, value in SIZES.items()]
    words = [
        "fit",
        "--config",
        str(CONFIGS / "baseline.yaml"),
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
    ]
    words += [*small, *TWO, "--trainer.num_nodes=1"]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"}
    tasks = []
    for rank in ("0", "1"):
        variables = os.environ | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        command = [sys.executable, "-m", "interpretable_training", *words]
        tasks.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    errors = [task.communicate(timeout=500)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors[0][-3000:]
    assert "distributed_backend=gloo" in errors[0]
    logged = numbers(tmp_path / "runs" / "baseline" / "version_0" / "metrics.csv")
    assert max(map(int, logged["step"])) == 96 // 12 // 2 - 1
