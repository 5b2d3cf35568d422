"""The detector finds nothing where nothing happens, and names what happens where something does."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.precision import MixedPrecision
from support.observed_training import SHORT, Does, Small, loaders, one_ulp, trainers, verify
from torch import nn

from interpretable_training.testing import verify_observer


def minus_zero(module):
    module.idle.data[0] = -0.0


def forward_in_train_mode(module):
    with torch.random.fork_rng(), torch.no_grad():
        module(torch.ones(2, 3, 16, 16))


def backward(module):
    module.network[8].weight.square().sum().backward()


def a_hook(module, args, output):
    """Changes nothing, yet stays."""


def touch_optimizer_state(module):
    module.optimizers(use_pl_optimizer=False).state[module.network[3].weight]["exp_avg"][0, 0, 0, 0] += 1e-9


def set_option(module):
    module.optimizers(use_pl_optimizer=False).param_groups[0]["weight_decay"] = 0.5


def replace_relu(module):
    module.network[4] = nn.Identity()


def stop(module):
    module.trainer.should_stop = True


CULPRITS = {
    "one ulp": (one_ulp, "weight", "idle"),
    "minus zero": (minus_zero, "weight", "idle"),
    "batch norm": (forward_in_train_mode, "buffer", "network.1.running_mean"),
    "counter": (
        lambda module: module.network[1].num_batches_tracked.add_(1),
        "buffer",
        "network.1.num_batches_tracked",
    ),
    "backward": (backward, "gradient", "network.8.weight"),
    "torch": (lambda module: torch.rand(1), "random generator", "torch"),
    "numpy": (lambda module: np.random.rand(), "random generator", "numpy"),
    "python": (lambda module: random.random(), "random generator", "python"),
    "half of a pair": (
        lambda module: random.setstate((*random.getstate()[:2], 0.5)),  # as after the first of two random.gauss
        "random generator",
        "python",
    ),
    "eval": (lambda module: module.network[7].eval(), "training", "network.7"),
    "requires_grad": (lambda module: module.idle.requires_grad_(True), "requires_grad", "idle"),
    "hook": (lambda module: module.network[0].register_forward_hook(a_hook), "hooks", "network.0"),
    "hook of a weight": (lambda module: module.network[8].bias.register_hook(abs), "hooks", "network.8.bias"),
    "optimizer state": (touch_optimizer_state, "optimizer state", "network.3.weight.exp_avg"),
    "optimizer option": (set_option, "optimizer option", "group 0.weight_decay"),
    "schedule": (lambda module: module.lr_schedulers().step(), "scheduler", "0.last_epoch"),
    "metric": (lambda module: module.accuracy.tp.add_(1), "metric state", "accuracy.tp"),
    "surgery": (replace_relu, "class", "network.4"),
    "stop": (stop, "trainer", "should_stop"),
    "switch": (lambda module: torch.set_float32_matmul_precision("medium"), "switch", "float32 matmul precision"),
    "gradients off": (lambda module: torch.set_grad_enabled(False), "switch", "grad enabled"),
}


def test_all_changes_of_one_moment_are_found_and_nothing_else(tmp_path):
    def everything(module):
        for action, *_ in CULPRITS.values():
            action(module)

    report = verify(tmp_path, Does(everything), **SHORT)
    here = [
        each for each in report.differences if each.moment == "after step 4 (epoch 0, batch 3) in on_train_batch_end"
    ]
    assert report.differences[: len(here)] == tuple(here)
    side_effects = {
        ("buffer", "network.1.running_var"),
        ("optimizer option", "group 0.lr"),
        ("scheduler", "0._step_count"),
        ("scheduler", "0._last_lr.0"),
    }
    found = {(each.kind, each.name) for each in here}
    assert found == {(kind, name) for _, kind, name in CULPRITS.values()} | side_effects
    assert report.reproducible


@pytest.mark.slow
@pytest.mark.parametrize("case", CULPRITS)
def test_each_change_is_found_where_it_happens_and_named(tmp_path, case):
    action, kind, name = CULPRITS[case]
    report = verify(tmp_path, Does(action), **SHORT)
    assert not report
    assert not report.ok
    assert report.reproducible
    here = [difference for difference in report.differences if difference.moment == report.differences[0].moment]
    assert (kind, name) in [(difference.kind, difference.name) for difference in here]
    assert here[0].moment == "after step 4 (epoch 0, batch 3) in on_train_batch_end"
    with pytest.raises(AssertionError, match=f"{kind} of {name} "):
        report.raise_if_different()


def test_a_change_without_consequences_is_the_only_one_reported(tmp_path):
    (found,) = verify(tmp_path, Does(one_ulp), **SHORT).differences
    assert str(found) == (
        "after step 4 (epoch 0, batch 3) in on_train_batch_end: weight of idle has other values; "
        "at the end 1 of 2 values differ, by up to 1.19e-07"
    )


def test_other_callbacks_and_the_gradient_scaler_are_watched_too(tmp_path):
    def disturb(module):
        module.trainer.early_stopping_callback.wait_count = 2
        module.trainer.precision_plugin.scaler.update(8.0)

    def make_trainer(callbacks):
        plugins = [MixedPrecision("16-mixed", "cpu")]
        return trainers(tmp_path, lambda: EarlyStopping("val/loss"), plugins=plugins, **SHORT)(callbacks)

    assert verify_observer(make_trainer, Small, loaders, L.Callback())
    found = verify_observer(make_trainer, Small, loaders, Does(disturb, step=2)).differences
    assert "gradient scaler of scale is 8.0, was 65536.0" in str(found[0])
    assert "callback of EarlyStopping.wait_count is 2, was 0" in str(found[1])


def test_a_change_that_is_undone_is_told_as_such(tmp_path):
    class Forgetful(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            module.idle.requires_grad = True

        def on_train_batch_end(self, trainer, module, *_):
            module.idle.requires_grad = False

    (found,) = verify(tmp_path, Forgetful(), **SHORT).differences
    assert str(found) == (
        "after step 0 (epoch 0, batch 0) in on_train_batch_start: requires_grad of idle is True, was False; "
        "equal again at the end"
    )


def test_gradients_lost_in_the_middle_of_an_accumulation_are_found(tmp_path):
    class Zero(L.Callback):
        def on_validation_end(self, trainer, module):
            module.zero_grad()

    found = verify(tmp_path, Zero(), accumulate_grad_batches=4, val_check_interval=2).differences
    assert found[0].kind == "gradient"
    assert found[0].moment == "after step 0 (epoch 0, batch 1) in on_validation_end"
    assert found[0].change.startswith("gradient of network.0.weight is None, was float32 (4, 3, 3, 3)")
    assert "weight" in {difference.kind for difference in found}
    # Where validation follows the optimizer's step there is nothing to lose.
    assert verify(tmp_path, Zero(), **SHORT)


def test_a_batch_changed_in_place_is_found(tmp_path):
    class Brighter(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batch[0].add_(1)

    first = verify(tmp_path, Brighter(), **SHORT).differences[0]
    assert (first.kind, first.name) == ("batch", "0")
    assert first.moment.endswith("in on_train_batch_start")


def test_random_numbers_drawn_by_a_constructor_are_found(tmp_path):
    class Draws(L.Callback):
        def __init__(self):
            torch.rand(1)

    first = verify(tmp_path, Draws, **SHORT).differences[0]
    assert str(first).startswith("when the callbacks were made: random generator of torch has other values")


def test_a_training_that_goes_another_way_is_compared_up_to_there_and_at_the_end(tmp_path):
    class Stops(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    found = {difference.kind: difference for difference in verify(tmp_path, Stops()).differences}
    assert "before on_train_epoch_start, was after" not in found["course"].change
    assert "is after step 6 (epoch 1, batch 5) before on_train_end, was after step 6" in found["course"].change
    assert found["weight"].moment == "at the end"
