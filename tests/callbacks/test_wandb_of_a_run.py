"""Entries of a whole training in an offline run of W&B, and a service that is stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from support.wandb_reader import Run
from support.watched import fit

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.metrics import AverageDrop, AverageGain


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs with a prefix, read back once."""
    folder, patch = tmp_path_factory.mktemp("wandb"), pytest.MonkeyPatch()
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        patch.setenv(f"WANDB_{name}", str(folder))
    for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true", "X_DISABLE_STATS": "true"}.items():
        patch.setenv(f"WANDB_{name}", value)
    import wandb

    wandb.teardown()  # what other tests in this process left
    watching = [
        ExplanationLogger(max_images=2, hardest=1, on_error="raise"),
        InterpretabilityMetrics(GradCAM(), [AverageDrop(), AverageGain()], max_images=6, on_error="raise"),
        ExplanationDrift(max_images=2, on_error="raise"),
    ]
    best = ModelCheckpoint(monitor="xai/gradcam/average_gain", mode="max")
    logger = WandbLogger(save_dir=folder, log_model=True)
    fit(folder, [*watching, best], logger=logger, enable_checkpointing=True)
    wandb.finish()
    wandb.teardown()
    patch.undo()
    return Run(folder / "wandb"), folder


def test_run_tables_show_the_best_value_of_each_metric(whole):
    run, _ = whole
    for name, best in (("average_drop", min), ("average_gain", max)):
        key = f"xai/gradcam/{name}"
        values = [row[key] for row in run.rows if key in row]
        assert len(values) == 3
        metrics = [record.metric for record in run.records if record.WhichOneof("record_type") == "metric"]
        (defined,) = [metric for metric in metrics if metric.name == key]
        assert (defined.step_metric, defined.summary.min, defined.summary.max) == (
            "trainer/global_step",
            best is min,
            best is max,
        )
        assert run.summary[f"best/{key}"] == pytest.approx(best(values))


def artifacts_of(run, kind):
    """The artifacts of a type."""
    logged = [record.artifact for record in run.records] + [r.request.log_artifact.artifact for r in run.records]
    return [artifact for artifact in logged if artifact.type == kind]


def test_model_artifacts_of_lightning_hold_the_monitored_faithfulness(whole):
    """The score of Lightning's own artifact, which is left as it is, is the value that the checkpoint monitors."""
    run, _ = whole
    (model,) = artifacts_of(run, "model")
    facts = json.loads(model.metadata)
    assert facts["ModelCheckpoint"]["monitor"] == "xai/gradcam/average_gain"
    assert facts["score"] == pytest.approx(run.summary["best/xai/gradcam/average_gain"])


def test_the_report_is_in_the_run_and_an_artifact(whole):
    run, folder = whole
    (page,) = folder.rglob("report.html")
    (row,) = [row for row in run.rows if "xai/report" in row]
    assert row["trainer/global_step"] == max(r["trainer/global_step"] for r in run.rows)
    shown = (run.folder / "files" / row["xai/report"]["path"]).read_text()
    assert shown == page.read_text()
    (artifact,) = artifacts_of(run, "report")
    assert [(entry.path, entry.size) for entry in artifact.manifest.contents] == [("report.html", page.stat().st_size)]
    facts = json.loads(artifact.metadata)
    assert facts["run"] in shown
    assert facts["best"]["xai/gradcam/average_gain"] == run.summary["best/xai/gradcam/average_gain"]


def test_pictures_and_tables_of_all_callbacks_arrive(whole):
    run, _ = whole
    for key, count in {"xai/images": 1, "xai/gradcam": 3, "xai/hardest/gradcam": 3, "xai/drift": 1}.items():
        rows = [row for row in run.rows if key in row]
        assert len(rows) == count
        assert all(file.is_file() for row in rows for file, _ in run.images(row, key))
    (table,) = [row["xai/maps"] for row in run.rows if "xai/maps" in row]
    assert table["nrows"] == 3 * (2 + 1)


STOPS = """
import os, signal, sys, time, warnings
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from lightning.pytorch.loggers import WandbLogger
from support.watched import Module, fit, loader
import lightning as L
from interpretable_training.callbacks import ExplanationLogger
from interpretable_training.callbacks.watching import background_sender

background_sender.BackgroundSender.__init__.__defaults__ = (3.0,)

class Quiet(WandbLogger):
    def log_metrics(self, metrics, step=None):
        pass

class Stop(L.Callback):
    def on_train_start(self, trainer, module):
        me = os.getpid()
        with open(f"/proc/{me}/task/{me}/children") as children:
            services = [int(child) for child in children.read().split()]
        (self.service,) = [p for p in services if "wandb-core" in open(f"/proc/{p}/cmdline").read()]
        os.kill(self.service, signal.SIGSTOP)
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == trainer.max_epochs:
            print("TRAINED", time.monotonic() - self.start)

stop = Stop()
names = ["c" * 4000 + str(i) for i in range(3)]
watch = ExplanationLogger(max_images=9, hardest=0, every_n_steps=1, class_names=names)
logger = Quiet(save_dir=".")
logger.experiment
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fit(".", [watch, stop], Module(), logger=logger, max_epochs=4)
print("FITTED", time.monotonic() - stop.start)
text = [str(w.message) for w in caught if "expected the loggers to take" in str(w.message)]
print("WARNED", len(text))
print("REASONS", sum(n for reason, n in watch.errors.reasons.items() if "TimeoutError" in reason))
sys.stdout.flush()
os.kill(stop.service, signal.SIGKILL)
os._exit(0)
"""


@pytest.mark.slow
def test_a_stopped_service_does_not_hold_up_the_training(tmp_path):
    """The process that it stops is its own child, by its id; numbers, which Lightning logs itself, are switched off."""
    tests = Path(__file__).parents[1]
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_X_DISABLE_STATS": "true",
    }
    words = [sys.executable, "-c", STOPS, str(tests)]
    ran = subprocess.run(
        words, capture_output=True, text=True, timeout=900, cwd=tmp_path, env={**os.environ, **environment}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = dict(
        line.split() for line in ran.stdout.splitlines() if line.split()[0].isupper() and len(line.split()) == 2
    )
    assert int(printed["WARNED"]) == 1
    assert int(printed["REASONS"]) > 1  # counted
    assert list(tmp_path.rglob("panel-epoch0003*.png"))  # all of it is on disk
    assert len(list(tmp_path.rglob("panels/panel-epoch*.png"))) == 4 * 4
    assert float(printed["FITTED"]) - float(printed["TRAINED"]) < 15  # two waits of three seconds at most
