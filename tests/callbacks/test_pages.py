"""Reports lie beside the checkpoints; each run has one, also when several start in one folder at the same time."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from support.full_disk import files_of_at_most, small_disk
from support.watched import Module, fit, loader, small_network, trainer_of

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, TrainingCurves
from interpretable_training.callbacks.watching.run_journal import claim_page
from interpretable_training.report.journal import FILE, parse


def test_runs_that_start_at_once_claim_different_pages(tmp_path):
    for attempt in range(10):
        folder, go, claimed = tmp_path / str(attempt), threading.Barrier(8), {}

        def claim(run, folder=folder, go=go, claimed=claimed):
            go.wait()
            claimed[run] = claim_page(folder, run, folder)

        threads = [threading.Thread(target=claim, args=(f"{i:012x}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(claimed.values())) == 8
        assert folder / "report.html" in claimed.values()
        for run, page in claimed.items():
            assert run in page.read_text()
            assert claim_page(folder, run, folder) == page  # a run that goes on


def test_a_full_disk_claims_no_page(tmp_path):
    with files_of_at_most(10), pytest.raises(OSError, match="too large"):
        claim_page(tmp_path, "a" * 12, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert claim_page(tmp_path, "b" * 12, tmp_path) == tmp_path / "report.html"


def test_a_folder_named_like_the_page_is_left_alone(tmp_path):
    (tmp_path / "report.html").mkdir()
    assert claim_page(tmp_path, "a" * 12, tmp_path).name == f"report-{'a' * 12}.html"


def test_a_resumed_run_continues_its_own_page(tmp_path):
    """Not that of the run which came first into the folder."""
    fit(tmp_path, [ExplanationDrift(max_images=2)], max_epochs=1)
    folder = tmp_path / "explanations"
    first = (folder / "report.html").read_bytes()
    keeper = ModelCheckpoint(tmp_path, filename="second")
    fit(tmp_path, [ExplanationDrift(max_images=2), keeper], enable_checkpointing=True, max_epochs=1)
    (other,) = folder.glob("report-*.html")
    before = other.read_bytes()
    fit(tmp_path, [ExplanationDrift(max_images=2)], max_epochs=2, ckpt_path=tmp_path / "second.ckpt", weights_only=True)
    assert (folder / "report.html").read_bytes() == first
    assert other.read_bytes() != before
    assert len(list(folder.glob("*.html"))) == 2


TRAINS = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from support.watched import fit
from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger
folder = Path(sys.argv[1])
(folder / f"ready{sys.argv[3]}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
fit(folder / "runs", [ExplanationLogger(max_images=2, hardest=1), ExplanationDrift(max_images=2)], max_epochs=2)
"""


@pytest.mark.slow
def test_three_processes_in_one_folder_leave_three_pages(tmp_path):
    words = [sys.executable, "-c", TRAINS, tmp_path, Path(__file__).parents[1]]
    processes = [subprocess.Popen([*words, str(i)], stderr=subprocess.DEVNULL) for i in range(3)]
    while len(list(tmp_path.glob("ready*"))) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    (tmp_path / "go").touch()
    assert [process.wait() for process in processes] == [0, 0, 0]
    runs, broken = parse(tmp_path / "runs" / "explanations" / FILE)
    pages = list((tmp_path / "runs").rglob("*.html"))
    assert len(runs) == len(pages) == 3
    assert not broken
    assert {run for run in runs for page in pages if run in page.read_text()[:2000]} == set(runs)
    assert all(page.stat().st_size > 20_000 for page in pages)


@pytest.mark.parametrize("size", [100, 2000, 10_000, 30_000])
def test_a_disk_that_takes_small_files_only_leaves_no_half_page(tmp_path, size):
    callbacks = [ExplanationLogger(max_images=2, hardest=1), ExplanationDrift(max_images=2), Curves()]
    with files_of_at_most(size):
        trainer = fit(tmp_path, callbacks, Module(small_network()), max_epochs=2)
    assert trainer.state.finished
    assert_whole(tmp_path)


def assert_whole(folder):
    """Pages, and pictures, are whole, and nothing else is left."""
    from PIL import Image

    for page in folder.rglob("*.html"):
        assert page.read_text().rstrip().endswith(("</html>", "</pre>")), page
    for file in folder.rglob("*.png"):
        with Image.open(file) as picture:
            picture.load()
    assert [file for file in folder.rglob("*") if "~." in file.name and file.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [24, 32, 48, 64, 80, 96, 112, 128, 160, 200, 240, 280, 320, 400])
def test_a_full_disk_leaves_no_half_page_and_no_half_picture(tmp_path, kilobytes):
    with small_disk(tmp_path / "disk", f"{kilobytes}k") as disk:
        callbacks = [ExplanationLogger(max_images=3, hardest=2), ExplanationDrift(max_images=3), Curves()]
        assert fit(disk, callbacks, Module(small_network()), max_epochs=8).state.finished
        assert_whole(disk)


class Curves(TrainingCurves):
    """Curves of what the module of these tests logs."""

    def collect(self, trainer, prefix):
        super().collect(trainer, prefix)
        self.epochs[trainer.current_epoch]["val/loss"] = float(torch.rand(()))


def checkpoint_folder(tmp_path, logger):
    watch = [ExplanationLogger(max_images=2, hardest=0), ModelCheckpoint(monitor="val/loss")]
    trainer = trainer_of(tmp_path, watch, logger=logger, max_epochs=1, enable_checkpointing=True)
    trainer.fit(Module(), loader(), loader())
    return next(tmp_path.rglob("*.ckpt")).parents[1]


@pytest.mark.filterwarnings("ignore")
def test_report_lies_beside_checkpoints_in_a_folder_per_run(tmp_path):
    run = checkpoint_folder(tmp_path, CSVLogger(tmp_path))
    assert (run / "explanations" / "journal.jsonl").is_file()
    assert (run / "report.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_report_lies_beside_checkpoints_in_a_shared_folder(tmp_path, offline_wandb):
    run = checkpoint_folder(tmp_path, WandbLogger(project="p", save_dir=tmp_path, offline=True))
    offline_wandb()
    assert run != tmp_path
    assert (run / "explanations" / "journal.jsonl").is_file()
    assert (run / "report.html").is_file()
