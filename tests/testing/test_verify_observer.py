"""`verify_observer` finds and names every change of a training, and only these."""

import random
import time

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.precision import MixedPrecision
from support.observed_training import SHORT, Does, Small, loaders, one_ulp, trainers, verify
from torch import nn

from interpretable_training.callbacks import TrainingCurves
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


def test_verify_observer_finds_all_changes_of_one_hook(tmp_path):
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
    results = {(each.kind, each.name) for each in here}
    assert results == {(kind, name) for _, kind, name in CULPRITS.values()} | side_effects
    assert report.reproducible


@pytest.mark.slow
@pytest.mark.parametrize("case", CULPRITS)
def test_verify_observer_names_each_change_and_its_hook(tmp_path, case):
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


def test_verify_observer_reports_a_single_change(tmp_path):
    (results,) = verify(tmp_path, Does(one_ulp), **SHORT).differences
    assert str(results) == (
        "after step 4 (epoch 0, batch 3) in on_train_batch_end: weight of idle has other values; "
        "at the end 1 of 2 values differ, by up to 1.19e-07"
    )


def test_verify_observer_compares_callbacks_and_scaler(tmp_path):
    def disturb(module):
        module.trainer.early_stopping_callback.wait_count = 2
        module.trainer.precision_plugin.scaler.update(8.0)

    def make_trainer(callbacks):
        plugins = [MixedPrecision("16-mixed", "cpu")]
        return trainers(tmp_path, lambda: EarlyStopping("val/loss"), plugins=plugins, **SHORT)(callbacks)

    assert verify_observer(make_trainer, Small, loaders, L.Callback())
    results = verify_observer(make_trainer, Small, loaders, Does(disturb, step=2)).differences
    assert "gradient scaler of scale is 8.0, was 65536.0" in str(results[0])
    assert "callback of EarlyStopping.wait_count is 2, was 0" in str(results[1])


def test_verify_observer_reports_undone_changes(tmp_path):
    class Forgetful(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            module.idle.requires_grad = True

        def on_train_batch_end(self, trainer, module, *_):
            module.idle.requires_grad = False

    (results,) = verify(tmp_path, Forgetful(), **SHORT).differences
    assert str(results) == (
        "after step 0 (epoch 0, batch 0) in on_train_batch_start: requires_grad of idle is True, was False; "
        "equal again at the end"
    )


def test_verify_observer_finds_gradients_lost_in_accumulation(tmp_path):
    class Zero(L.Callback):
        def on_validation_end(self, trainer, module):
            module.zero_grad()

    results = verify(tmp_path, Zero(), accumulate_grad_batches=4, val_check_interval=2).differences
    assert results[0].kind == "gradient"
    assert results[0].moment == "after step 0 (epoch 0, batch 1) in on_validation_end"
    assert results[0].change.startswith("gradient of network.0.weight is None, was float32 (4, 3, 3, 3)")
    assert "weight" in {difference.kind for difference in results}
    # Where validation follows the optimizer's step there is nothing to lose.
    assert verify(tmp_path, Zero(), **SHORT)


def test_verify_observer_finds_a_batch_changed_in_place(tmp_path):
    class Brighter(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batch[0].add_(1)

    first = verify(tmp_path, Brighter(), **SHORT).differences[0]
    assert (first.kind, first.name) == ("batch", "0")
    assert first.moment.endswith("in on_train_batch_start")


def test_verify_observer_finds_random_draws_of_a_constructor(tmp_path):
    class Draws(L.Callback):
        def __init__(self):
            torch.rand(1)

    first = verify(tmp_path, Draws, **SHORT).differences[0]
    assert str(first).startswith("when the callbacks were made: random generator of torch has other values")


def test_verify_observer_compares_a_training_that_stops_early(tmp_path):
    class Stops(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    results = {difference.kind: difference for difference in verify(tmp_path, Stops()).differences}
    assert "before on_train_epoch_start, was after" not in results["course"].change
    assert "is after step 6 (epoch 1, batch 5) before on_train_end, was after step 6" in results["course"].change
    assert results["weight"].moment == "at the end"


@pytest.mark.parametrize("callbacks", [[L.Callback(), TrainingCurves()], TrainingCurves])
def test_watching_callbacks_change_nothing(tmp_path, callbacks):
    report = verify(tmp_path, callbacks, stages=("fit", "validate", "test", "predict"))
    assert report.ok, report
    assert report.moments > 200
    assert str(report) == f"The callbacks changed nothing: the state was compared {report.moments} times."
    report.raise_if_different()


def test_forward_hooks_are_allowed_in_validation_batches_only(tmp_path):
    class Listens(L.Callback):
        def __init__(self, until):
            setattr(self, until, self.stop)

        def __deepcopy__(self, memo):
            return self

        def on_validation_batch_start(self, trainer, module, *_):
            self.handle = module.network.register_forward_hook(lambda *_: None)

        def stop(self, *_):
            self.handle.remove()

    assert verify(tmp_path, Listens("on_validation_batch_end"), **SHORT)
    (results,) = verify(tmp_path, Listens("on_validation_end"), **SHORT).differences
    assert results.moment == "after step 5 (epoch 0, batch 4) in on_validation_batch_end 0"
    assert "hooks of network is forward hook test_verify_observer.test_forward_hooks" in results.change


def test_verify_observer_copies_callbacks(tmp_path):
    curves = TrainingCurves()
    assert verify(tmp_path, curves, **SHORT)
    assert curves.epochs == {}


def test_verify_observer_detects_trainings_that_vary(tmp_path):
    drawn = torch.Generator()

    class Noisy(Small):
        def training_step(self, batch, batch_idx):
            return (
                super().training_step(batch, batch_idx) + torch.rand((), generator=drawn) * self.network[8].bias.sum()
            )

    report = verify(tmp_path, Does(one_ulp), make_module=Noisy, **SHORT)
    assert not report
    assert not report.reproducible
    assert [(difference.kind, difference.name) for difference in report.differences] == [("weight", "idle")]
    assert str(report).startswith("This training is not reproducible")
    with pytest.raises(AssertionError, match="deterministic=True"):
        verify(tmp_path, L.Callback(), make_module=Noisy, **SHORT).raise_if_different()


def test_verify_observer_ignores_logged_times(tmp_path):
    class Clock(Small):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("time", time.perf_counter())

    report = verify(tmp_path, L.Callback(), make_module=Clock, **SHORT)
    assert report
    assert str(report).endswith("Ignored, because they differ between runs without the callbacks: logged time.")


def test_verify_observer_compares_logged_values(tmp_path):
    class Logs(L.Callback):
        def __init__(self, key):
            self.key = key

        def on_validation_epoch_end(self, trainer, module):
            self.log(self.key, 1.0)

    assert verify(tmp_path, Logs("mine"), **SHORT)

    class Overwrites(L.Callback):
        def on_validation_batch_end(self, trainer, module, *_):
            module.accuracy.update(torch.eye(3), torch.arange(3))

    results = verify(tmp_path, Overwrites(), **SHORT).differences
    assert ("logged", "val/accuracy") in [(difference.kind, difference.name) for difference in results]


def states():
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def test_verify_observer_changes_nothing_itself(tmp_path):
    seen = []

    class Remembered(Small):
        def on_fit_end(self):
            seen.append([states(), {name: value.tolist() for name, value in self.state_dict().items()}])

    before = states()
    verify(tmp_path, L.Callback(), make_module=Remembered)
    assert states() == before
    L.seed_everything(0, verbose=False)
    trainers(tmp_path)([]).fit(Remembered(), *loaders())
    assert seen[0] == seen[1] == seen[2]


def test_verify_observer_refuses_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"expected make_trainer to pass its callbacks .* without \['StateRecorder'"):
        verify_observer(lambda given: trainers(tmp_path)([]), Small, loaders, L.Callback())
    module = Small()
    with pytest.raises(ValueError, match="expected make_module to return a new module each time"):
        verify(tmp_path, L.Callback(), make_module=lambda: module, **SHORT)
    with pytest.raises(TypeError, match="expected Lightning callbacks, got int"):
        verify(tmp_path, [3], **SHORT)
    with pytest.raises(ValueError, match=r"expected stages among \['fit', .* got 'train'"):
        verify(tmp_path, L.Callback(), stages=("train",))


@pytest.mark.slow
def test_verify_observer_refuses_other_processes(tmp_path):
    with pytest.raises(RuntimeError, match=r"expected a training in this process, got DDPStrategy"):
        verify(tmp_path, L.Callback(), devices=2, strategy="ddp_fork", **SHORT)
