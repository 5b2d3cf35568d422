"""Cost of watching: its share of an epoch, that of pictures and files, and memory over many explanation steps.

python benchmarks/bench_watching.py               # all, about eight minutes on two cores; nothing else should run
python benchmarks/bench_watching.py share memory  # some of the parts
"""

import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from timing import resident

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier
from interpretable_training.report.journal import read_journal

SHORT = 320  # images of an epoch of about six seconds on one core, with 1000 images of validation
LIMIT = "5 % of an epoch of 30 s or more"


class Clock(L.Callback):
    """Seconds of each epoch, and of the processor in its steps, which other programs disturb less."""

    def __init__(self):
        self.seconds, self.steps = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.start, self.spent = time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.spent += time.process_time() - self.batch

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds.append(time.perf_counter() - self.start)
        self.steps.append(self.spent)


def line(what, figure, limit):
    """A line of a Markdown table."""
    print(f"| {what} | {limit} | {figure} |", flush=True)


def train(callbacks, n_train, epochs, folder, size=64, network="tiny_cnn"):
    """A training of the demo's network, or of another."""
    L.seed_everything(0, verbose=False)
    data = ShapesDataModule(size, n_train=n_train, batch_size=32, annotations=True, shortcut=0.95)
    module = Classifier(network, data.num_classes, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=epochs, logger=False, accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet
    )
    trainer.fit(module, data)
    return trainer


def share():
    """Default settings on the demo with epochs of 30 s; the same training without them, in turn."""
    rows, steps = {"with": [], "without": [], "logged": []}, {"with": [], "without": []}
    spent = {"pictures and files": 0.0}
    for _ in range(2):
        for watched in (False, True):
            clock = Clock()
            watch = [ExplanationLogger(), InterpretabilityMetrics()] if watched else []
            if watched:
                timed(watch[0], "draw", spent)
            with tempfile.TemporaryDirectory() as folder:
                trainer = train([clock, *watch], 20_000, 2, folder)
            rows["with" if watched else "without"] += clock.seconds
            steps["with" if watched else "without"] += clock.steps
            if watched:
                rows["logged"].append(float(trainer.callback_metrics["xai/share_of_epoch"]))
    without, seconds = (sum(rows[name]) / len(rows[name]) for name in ("without", "with"))
    line("an epoch without", f"{without:.1f} s", "")
    line("an epoch with", f"{seconds:.1f} s, {seconds / without - 1:+.1%}", LIMIT)
    line(
        "processor seconds of an epoch's steps, without and with",
        f"{min(steps['without']):.1f}, {min(steps['with']):.1f}",
        "",
    )
    line("share that the callbacks log", " ".join(f"{s:.1%}" for s in rows["logged"]), LIMIT)
    line("of an epoch, pictures and files", f"{spent['pictures and files'] / len(rows['with']):.2f} s", "")


def short():
    """Default settings, and a budget of 5 % for each callback: trainings of three epochs of seconds, start included.

    Processor time of all threads, which other programs disturb less.
    """
    settings = {"without": None, "default": {}, "budget of 5 %": {"budget": 0.05}}
    spent: dict[str, list[float]] = {name: [] for name in settings}
    shares: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(2):
        for name, options in settings.items():
            kinds = [] if options is None else [ExplanationLogger, InterpretabilityMetrics, ExplanationDrift]
            clock = Clock()
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                train([clock, *(kind(**options) for kind in kinds)], SHORT, 3, folder, network="resnet18")
                journal = read_journal(Path(folder) / "explanations") if kinds else None
            spent[name].append(time.process_time() - start)
            if journal is not None:
                costs = [line["values"] for line in journal.of("values") if "xai/share_of_epoch" in line["values"]]
                shares[name] += [cost["xai/share_of_epoch"] for cost in costs]
            if name == "without":
                line("an epoch without", f"{statistics.median(clock.seconds):.1f} s", "")
    plain = statistics.median(spent["without"])
    for name in list(settings)[1:]:
        limit, watched = "+25 %" if name == "default" else "5 % each", statistics.median(spent[name])
        line(f"a training with {name}", f"{plain:.1f} s without, {watched:.1f} s, {watched / plain - 1:+.0%}", limit)
        line(f"largest share of a callback in an epoch, {name}", f"{max(shares[name]):.1%}", limit)


def timed(watcher, method, spent):
    """Add up the seconds of a method."""
    inner = getattr(watcher, method)

    def outer(*args):
        start = time.perf_counter()
        inner(*args)
        spent["pictures and files"] += time.perf_counter() - start

    setattr(watcher, method, outer)


def imports():
    """Processor seconds of importing the Trainer alone and the callbacks, which import it."""
    found = {"lightning": [], "interpretable_training.callbacks": []}
    for _ in range(5):
        for name, seconds in found.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    both = [statistics.median(seconds) for seconds in found.values()]
    line("processor seconds of importing lightning, and of the callbacks with it", f"{both[0]:.2f}, {both[1]:.2f}", "")


def memory():
    """Resident memory after 20 and after 120 explanation steps."""
    seen = {}

    class Scale(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step in (20, 120):
                gc.collect()
                seen[trainer.global_step] = resident()

    metrics = InterpretabilityMetrics(max_images=8, every_n_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        train([ExplanationLogger(max_images=8, every_n_steps=1), metrics, Scale()], 32 * 120, 1, folder)
    line("memory after 20 and 120 steps", f"{seen[20]:.0f} and {seen[120]:.0f} MB", "flat")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = {"share": share, "short": short, "imports": imports, "memory": memory}
    for name in sys.argv[1:] or parts:
        parts[name]()
