"""A training that goes on from a checkpoint leaves the record of one that was never interrupted."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.families import few
from support.watched import BATCHES, Module, context_of, fit, pictures, record, small_network
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
)
from interpretable_training.metrics import AverageDrop
from interpretable_training.report.journal import FILE, parse, read_journal

CLOCK = ("xai/seconds", "xai/share_of_epoch", "xai/megabytes")  # values that no two runs share
SAVES = {  # where the checkpoint of step 6 or 8 is written
    "in an epoch": {"every_n_train_steps": 6},
    "before a validation": {"every_n_train_steps": 8},
    "after a validation": {},
    "after an epoch": {"save_on_train_epoch_end": True},
}


class Keeper(ModelCheckpoint):
    @property
    def state_key(self):
        return str(self.dirpath)


def everyone(**options):
    methods, options = GradCAM(), {"on_error": "raise", **options}
    return [
        ExplanationLogger(methods, max_images=3, hardest=2, scale="run", **options),
        InterpretabilityMetrics(methods, metrics=AverageDrop(), max_images=4, **options),
        ExplanationDrift(methods, max_images=3, **options),
        ExplanationAlarms(methods, max_images=3, border=0.3, drift=1e-6, **options),
    ]


def train(folder, checkpoints, **options):
    """With a look at each third step and each validation."""
    keepers = [
        Keeper(checkpoints / name, filename="{step}", auto_insert_metric_name=False, save_top_k=-1, **saves)
        for name, saves in SAVES.items()
    ]
    # Lightning begins the epoch of a checkpoint with the first batch again, so all batches are the same here.
    batches = DataLoader(ConcatDataset([pictures(4)] * BATCHES), batch_size=4)
    fit(folder, [*everyone(every_n_steps=3), *keepers], train=batches, enable_checkpointing=True, **options)


def events(found):
    """What happened, without files, times and numbers of the clock."""
    printed = []
    for line in found.of("maps", "values", "drift", "alarm", "training", "passport", "failure"):
        facts = {k: v for k, v in line.items() if k not in ("time", "run", "file")}
        if line["kind"] == "values":
            facts["values"] = {k: v for k, v in line["values"].items() if k not in CLOCK}
        printed.append(facts)
    return printed


def where(event):
    return event["kind"], event.get("epoch"), event.get("step"), event.get("callback", event.get("method"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, folder)
    return folder


@pytest.mark.parametrize("same_folder", few([True, False], True))
@pytest.mark.parametrize("case", SAVES)
def test_no_event_is_missing_or_there_twice(tmp_path, whole, case, same_folder):
    first = tmp_path if same_folder else whole
    if same_folder:
        train(first, first)
    step = 6 if case == "in an epoch" else 8
    checkpoint = first / case / f"{step}.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    train(tmp_path, tmp_path / "again", ckpt_path=checkpoint, weights_only=True)
    found, expected = record(tmp_path), record(whole)
    assert list(map(where, events(found))) == list(map(where, events(expected)))
    if case != "before a validation":  # which Lightning skips then, so that drift has another look before it
        assert events(found) == events(expected)
    assert {line["id"] for line in found.of("image")} == {line["id"] for line in expected.of("image")}
    assert found.missing == []
    assert len(list(tmp_path.rglob("report*.html"))) == 1


def test_a_callback_that_was_not_there_before_joins_the_others(tmp_path, whole):
    new = ExplanationDrift({"new": GradCAM("0")}, max_images=2, on_error="raise")
    fit(tmp_path, [new, *everyone(every_n_steps=3)], ckpt_path=whole / "after an epoch" / "8.ckpt")
    found = record(tmp_path).of("drift")
    assert {line["method"] for line in found if line["step"] == 8} == {"gradcam"}
    assert {line["method"] for line in found if line["step"] == 12} == {"gradcam", "new"}


def test_two_trainings_in_one_folder_are_kept_apart(tmp_path):
    for seed in (0, 1):
        fit(tmp_path, everyone(), Module(small_network(seed=seed)), max_epochs=1)
    runs = list(parse(tmp_path / "explanations" / FILE)[0])
    assert len(runs) == 2
    first, second = (read_journal(tmp_path / "explanations", run) for run in runs)
    assert {*map(where, events(first))} == {*map(where, events(second))}
    assert [event["values"] for event in events(first) if "values" in event] != [
        event["values"] for event in events(second) if "values" in event
    ]
    assert all(Path(line["file"]).exists() for line in first.lines + second.lines if "file" in line)
    pages = {page.name for page in tmp_path.rglob("*.html")}
    assert pages == {"report.html", f"report-{runs[1]}.html"}


class Noisy(TensorDataset):
    """Draws from each of the generators."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(1) + random.random() + np.random.rand(), label


def test_the_panel_is_the_same_though_its_transform_draws(tmp_path):
    def seen(folder, **options):
        watcher, keeper = ExplanationDrift(max_images=4, on_error="raise"), ModelCheckpoint(folder, filename="kept")
        val = DataLoader(Noisy(*pictures(9, 1).tensors), batch_size=4)
        trainer = fit(folder, [watcher, keeper], val=val, enable_checkpointing=True, **options)
        return context_of(trainer, watcher).panel

    first = seen(tmp_path / "a", max_epochs=1)
    torch.rand(7)
    second = seen(tmp_path / "b", max_epochs=2, ckpt_path=tmp_path / "a" / "kept.ckpt")
    assert first.ids == second.ids
    assert torch.equal(first.batches[0][0], second.batches[0][0])
