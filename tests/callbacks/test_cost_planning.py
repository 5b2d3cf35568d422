"""Images of the first explanation step: planned by hand, and in trainings with a clock that only passes count."""

import math
import os
import time
from types import SimpleNamespace

import pytest
from support.watched import Module, fit, loader, record, small_network
from torch import nn

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.callbacks.watching.budget import AIM, DEFAULT_SHARE, BudgetController, plan
from interpretable_training.callbacks.watching.schedule import Schedule
from interpretable_training.metrics import AverageDrop

CLOCK = "CLOCK_OF_A_TEST"  # an environment variable, which explaining does not put back


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv(CLOCK, "0")
    monkeypatch.setattr(time, "perf_counter", lambda: float(os.environ[CLOCK]))


class Costly(nn.Module):
    """Takes 20 ms for each image of a pass."""

    def forward(self, images):
        os.environ[CLOCK] = str(float(os.environ[CLOCK]) + 0.02 * len(images))
        return images


def watcher(estimate, budget=None, n=64, **schedule):
    options = {"every_n_epochs": 1, "every_n_steps": None, **schedule}
    controller = BudgetController(budget, 4 if budget is None else 1)
    controller.estimate = estimate
    kinds = {"automatic": budget is None, "schedule": Schedule(**options), "n": n, "label": "Watcher"}
    return SimpleNamespace(budget=controller, **kinds)


def planned(watchers, seconds=10.0, batches=100, done=100, validated=math.inf):
    trainer = SimpleNamespace(
        num_training_batches=batches,
        val_check_batch=validated,
        enable_validation=True,
        accumulate_grad_batches=1,
        world_size=1,
        fit_loop=SimpleNamespace(batch_idx=done - 1),
    )
    os.environ[CLOCK] = str(seconds)
    said = plan(trainer, watchers, 0.0)
    return [watcher.budget.keep(watcher.n) for watcher in watchers], said


def test_images_are_halved_until_the_cost_is_within_its_part(clock):
    assert (AIM, DEFAULT_SHARE) == (0.8, 0.15)
    assert planned([watcher(8.0, 0.05)])[0] == [2]  # 8 s in place of 0.8 * 0.05 * 10 s: five halvings
    assert planned([watcher(8.0, 0.05)], done=50)[0] == [4]  # half of an epoch took 10 s
    assert planned([watcher(0.39, 0.05)])[0] == [64]
    assert planned([watcher(99.0, 0.05)])[0] == [1]
    assert planned([watcher(8.0)])[0] == [8]  # 8 s in place of 0.8 * 0.15 * 10 s
    assert planned([watcher(4.0), watcher(4.0, n=16)])[0] == [8, 4]  # share the part of the default; four at least
    assert planned([watcher(1.0), watcher(8.0, 0.5)])[0] == [64, 32]  # one with a budget is planned alone


def test_several_steps_in_an_epoch_are_planned(clock):
    assert planned([watcher(8.0, 0.05)], done=25, seconds=2.5, validated=25)[0] == [1]  # four validations in 10 s
    assert planned([watcher(8.0, 0.05)], validated=None)[0] == [2]  # Trainer(val_check_interval="00:01:00")
    assert planned([watcher(0.39, 0.05, every_n_steps=10)])[0] == [4]  # 0.39 s in place of 0.04 s
    _, said = planned([watcher(8.0, 0.05)])
    assert said == {
        "Watcher": "explains 2 of 64 images: all would take about 8 s, each 10 s of training; max_images= sets a number"
    }


def shares(folder):
    """Share of each epoch, by callback."""
    lines = [line for line in record(folder).of("values") if "xai/seconds" in line["values"]]
    return {(line["callback"], line["epoch"]): line["values"]["xai/share_of_epoch"] for line in lines}


def train(folder, callbacks):
    module = Module(nn.Sequential(Costly(), small_network()))
    fit(folder, callbacks, module, loader(400, 0, 16), loader(64, 1, 16), max_epochs=2)
    return shares(folder)


def test_budget_is_kept_in_each_epoch_the_first_included(clock, tmp_path):
    options = {"budget": 0.05, "on_error": "raise"}
    watching = [ExplanationLogger(**options), InterpretabilityMetrics(metrics=AverageDrop(), **options)]
    used = train(tmp_path, [*watching, ExplanationDrift(**options)])
    assert len(used) == 6
    assert max(used.values()) <= 0.05
    assert used["InterpretabilityMetrics", 0] > 0.01  # and not far below
    images = [len(line["rows"]) for line in record(tmp_path).of("maps") if line["group"] == "panel"]
    assert all(2 <= n < 16 for n in images)


def test_default_takes_at_most_its_share_of_short_epochs(clock, tmp_path):
    used = train(tmp_path, [ExplanationLogger(), InterpretabilityMetrics(metrics=AverageDrop()), ExplanationDrift()])
    for epoch in (0, 1):
        assert 0.01 < sum(share for (_, e), share in used.items() if e == epoch) <= DEFAULT_SHARE


def test_images_that_stay_the_same_are_chosen_once(clock):
    fixed = BudgetController(0.1, fixed=True)
    fixed.begin(4.0, 16)
    assert (fixed.keep(16), fixed.stretch(16)) == (4, 1)
    fixed.seconds, fixed.duration = 0.4, 1.0
    assert fixed.adjust(SimpleNamespace(world_size=1), 16)
    assert (fixed.keep(16), fixed.stretch(16)) == (4, 4)  # rarer, and not fewer
    fixed.seconds = 0.001
    fixed.adjust(SimpleNamespace(world_size=1), 16)
    assert (fixed.keep(16), fixed.stretch(16)) == (4, 1)  # and not more
