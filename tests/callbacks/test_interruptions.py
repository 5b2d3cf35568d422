"""A training that is stopped in the middle of an explanation."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.faulty import Faulty, Switch, everyone, raises
from support.watched import BATCHES, Module, fit, shown

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationLogger,
)

ENDS = [(e, BATCHES * (e + 1)) for e in range(3)]


@pytest.fixture
def faulty(monkeypatch):
    """A method, and what makes it do something else."""
    return Faulty(), lambda act: monkeypatch.setattr(Faulty, "act", staticmethod(act))


def state_of(module):
    return (
        [(name, part.training, len(part._forward_hooks)) for name, part in module.named_modules()],
        [(name, p.requires_grad) for name, p in module.named_parameters()],
    )


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_explanation_leaves_everything_as_it_was(tmp_path, faulty, interruption):
    method, becomes = faulty
    module, keeper = Module(), ModelCheckpoint(tmp_path, save_on_exception=True, save_last=True)
    module.network[0].requires_grad_(False)
    becomes_bad = Switch(1, lambda _: becomes(raises(interruption())))
    before = state_of(module)
    with pytest.raises(SystemExit):
        fit(tmp_path, [becomes_bad, keeper, *everyone([GradCAM(), method])], module, enable_checkpointing=True)
    after = state_of(module)
    assert after[1] == before[1]
    assert {hooks for _, _, hooks in after[0]} == {0}
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert shown(tmp_path) == ENDS[:1]
    assert (tmp_path / "explanations" / "report.html").exists()

    becomes(lambda images: 1.0)
    fit(tmp_path, everyone([GradCAM(), method], on_error="raise"), Module(), ckpt_path=tmp_path / "last.ckpt")
    assert shown(tmp_path) == ENDS


PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import lightning as L
    from dataclasses import dataclass
    from lightning.pytorch.callbacks import ModelCheckpoint
    from support.watched import Module, fit
    from interpretable_training.attribution import Attribution
    from interpretable_training.callbacks import ExplanationLogger

    @dataclass(frozen=True)
    class Killed(Attribution):
        def attribute(self, prepared, images, target):
            if Path("armed").exists():
                Path("armed").unlink()
                os.kill(os.getpid(), signal.SIGTERM)
            return images.abs().mean(1)

    class Arms(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                Path("armed").touch()

    keeper = ModelCheckpoint(".", save_last=True)
    callbacks = [Arms(), ExplanationLogger(Killed(), max_images=2, hardest=0), keeper]
    fit(Path("."), callbacks, Module(), enable_checkpointing=True)
    print("came to an end")
"""


@pytest.mark.slow
def test_a_termination_in_a_step_stops_where_lightning_stops(tmp_path):
    program = textwrap.dedent(PROGRAM.format(tests=os.path.dirname(os.path.dirname(__file__))))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr  # of Lightning's SIGTERMException
    assert "came to an end" not in done.stdout
    assert "Received SIGTERM" in done.stderr
    assert shown(tmp_path) == ENDS[:2]  # the look is done, and Lightning stops after the validation
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8
    assert (tmp_path / "explanations" / "report.html").exists()
    watching = ExplanationLogger({"killed": GradCAM()}, max_images=2, hardest=0, on_error="raise")
    fit(tmp_path, [watching], ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("make", range(4))
def test_raise_gives_the_original_exception(tmp_path, faulty, make):
    method, becomes = faulty
    mine = ZeroDivisionError("mine")
    heals = Switch(1, lambda _: becomes(raises(mine)))
    watcher = everyone(method, on_error="raise")[make]
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        fit(tmp_path, [heals, watcher])
    assert caught.value is mine
    assert caught.traceback[-1].name == "act"
    assert (tmp_path / "explanations" / "report.html").exists()
