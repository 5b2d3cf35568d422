import json
import os
import shutil
import subprocess
import sys

import lightning as L
import pytest
import timm
import torchvision.models
from support.pages import ROOT

from interpretable_training.data import ShapesDataModule

SMALL = {"n_train": 24, "n_val": 12, "n_test": 12}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
FEW = "--trainer.max_epochs=1 --trainer.enable_progress_bar=false --trainer.accelerator=cpu"


@pytest.fixture
def small_training(monkeypatch, tmp_path):
    """Trainings of two batches on a dozen images, in an empty folder, with networks that nobody has trained."""
    monkeypatch.chdir(tmp_path)

    def wrap(owner, name, **changed):
        """Have a function called with some arguments changed."""
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: function(*args, **{**options, **changed}))

    wrap(L.Trainer, "__init__", **QUIET, limit_train_batches=2, limit_val_batches=2)
    wrap(ShapesDataModule, "__init__", **SMALL)
    wrap(timm, "create_model", pretrained=False)
    wrap(torchvision.models, "resnet50", weights=None)
    return tmp_path


class Foreign:
    """A project of somebody else's in a folder of its own, from which its command line runs."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copy(ROOT / "tests/support/foreign_project.py", folder / "train.py")

    def run(self, *words):
        options = ["--model=TupleModule", "--data=Data", *FEW.split()]
        options += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]
        done = subprocess.run(
            [sys.executable, "train.py", *words, *options],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def logged(self):
        """Names of the values that the callbacks wrote."""
        (journal,) = self.folder.rglob("journal.jsonl")
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert not [line for line in lines if line["kind"] == "failure"]
        return {key for line in lines if line["kind"] == "values" for key in line["values"]}


@pytest.fixture
def foreign(tmp_path):
    return Foreign(tmp_path)
