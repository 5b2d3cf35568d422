"""What `verify_observer` says, of callbacks that only watch, of trainings that vary by themselves, and of mistakes."""

import random
import time

import lightning as L
import numpy as np
import pytest
import torch
from support.observed_training import SHORT, Does, Small, loaders, one_ulp, trainers, verify

from interpretable_training.callbacks import TrainingCurves
from interpretable_training.testing import verify_observer


@pytest.mark.parametrize("callbacks", [[L.Callback(), TrainingCurves()], TrainingCurves])
def test_callbacks_that_only_watch_change_nothing(tmp_path, callbacks):
    report = verify(tmp_path, callbacks, stages=("fit", "validate", "test", "predict"))
    assert report.ok, report
    assert report.moments > 200
    assert str(report) == f"The callbacks changed nothing: the state was compared {report.moments} times."
    report.raise_if_different()


def test_a_hook_may_listen_to_a_batch_of_validation_and_not_longer(tmp_path):
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
    (found,) = verify(tmp_path, Listens("on_validation_end"), **SHORT).differences
    assert found.moment == "after step 5 (epoch 0, batch 4) in on_validation_batch_end 0"
    assert "hooks of network is forward hook test_verify_observer_report.test_a_hook_may" in found.change


def test_objects_are_copied(tmp_path):
    curves = TrainingCurves()
    assert verify(tmp_path, curves, **SHORT)
    assert curves.epochs == {}


def test_a_training_that_does_not_repeat_itself_is_not_the_callbacks_fault(tmp_path):
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


def test_a_logged_time_is_left_out(tmp_path):
    class Clock(Small):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("time", time.perf_counter())

    report = verify(tmp_path, L.Callback(), make_module=Clock, **SHORT)
    assert report
    assert str(report).endswith("Ignored, because they differ between runs without the callbacks: logged time.")


def test_what_callbacks_log_is_no_difference_and_what_they_change_in_the_log_is(tmp_path):
    class Logs(L.Callback):
        def __init__(self, key):
            self.key = key

        def on_validation_epoch_end(self, trainer, module):
            self.log(self.key, 1.0)

    assert verify(tmp_path, Logs("mine"), **SHORT)

    class Overwrites(L.Callback):
        def on_validation_batch_end(self, trainer, module, *_):
            module.accuracy.update(torch.eye(3), torch.arange(3))

    found = verify(tmp_path, Overwrites(), **SHORT).differences
    assert ("logged", "val/accuracy") in [(difference.kind, difference.name) for difference in found]


def states():
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def test_the_detector_is_an_observer_itself(tmp_path):
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


def test_mistakes_end_in_a_sentence(tmp_path):
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
def test_processes_that_keep_what_they_saw_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"expected a training in this process, got DDPStrategy"):
        verify(tmp_path, L.Callback(), devices=2, strategy="ddp_fork", **SHORT)
