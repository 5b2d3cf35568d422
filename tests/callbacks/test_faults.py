"""What goes wrong in an explanation is said once, counted, and does not end the training."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from support.faulty import Faulty, Switch, everyone, raises, told, trained
from support.full_disk import small_disk
from support.watched import (
    BATCHES,
    Memory,
    Module,
    failures,
    fit,
    loader,
    looks,
    pictures,
    record,
    shown,
    small_network,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, LayerCAM
from interpretable_training.callbacks import (
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
)
from interpretable_training.callbacks.watching.session import WatchSession
from interpretable_training.metrics import AverageDrop
from interpretable_training.report.journal import Journal

KEY = "xai/gradcam/average_drop"
ENDS = [(e, BATCHES * (e + 1)) for e in range(3)]


@pytest.fixture
def faulty(monkeypatch):
    """A method, and what makes it do something else."""
    return Faulty(), lambda act: monkeypatch.setattr(Faulty, "act", staticmethod(act))


def test_a_method_without_memory_gets_fewer_images_at_once(tmp_path, faulty):
    method, becomes = faulty
    becomes(lambda images: 1.0 if len(images) < 3 else raises(torch.OutOfMemoryError("CUDA out of memory"))(images))
    fit(tmp_path, everyone({"faulty": method, "gradcam": GradCAM()}, on_error="raise"))
    methods = [line["method"] for line in record(tmp_path).of("maps") if line["group"] == "panel"]
    assert methods == ["faulty", "gradcam"] * 3
    assert looks(tmp_path, "InterpretabilityMetrics") == ENDS


def test_memory_that_runs_out_always_is_said_once_and_counted(tmp_path, faulty):
    method, becomes = faulty
    becomes(raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    module = Module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, everyone(method), module)
    assert trained(module, tmp_path)
    lines = record(tmp_path).of("failure")
    for name in ("ExplanationLogger", "InterpretabilityMetrics", "ExplanationDrift", "ExplanationAlarms"):
        mine = [line for line in lines if line["callback"] == name]
        assert [line["first"] for line in mine].count(True) == 1
        assert {line["epoch"] for line in mine} == {0, 1, 2}
        assert "out of memory" in mine[0]["reason"]
    causes = [text.partition("goes on: ")[2] for text in told(caught, "failed, the training goes on")]
    assert len(causes) == len(set(causes)) == 3  # of maps, of metrics, and of all weights
    assert (tmp_path / "explanations" / "report.html").exists()


def test_one_of_several_methods_fails_and_the_others_go_on(tmp_path, faulty):
    method, becomes = faulty
    becomes(raises(ZeroDivisionError("a method's own mistake")))
    logger = Memory()
    fit(tmp_path, everyone([GradCAM(), method, LayerCAM()]), logger=logger)
    assert {line["method"] for line in record(tmp_path).of("maps")} == {"gradcam", "layercam"}
    assert set(logger.pictures[1][2]) == {f"xai/{w}{m}" for w in ("", "hardest/") for m in ("gradcam", "layercam")}
    assert len(logger.steps(KEY)) == len(logger.steps("xai/layercam/similarity_previous")) == 3
    reasons = {line["reason"] for line in record(tmp_path).of("failure")}
    assert any("faulty: ZeroDivisionError: a method's own mistake" in reason for reason in reasons)


def test_a_method_that_works_later_is_compared_from_then_on(tmp_path, faulty):
    method, becomes = faulty
    becomes(raises(RuntimeError("not yet")))
    heals = Switch(1, lambda module: becomes(lambda images: 1.0))
    fit(tmp_path, [heals, ExplanationDrift([GradCAM(), method], max_images=3)])
    lines = [line["values"] for line in record(tmp_path).of("values") if "xai/gradcam/shift_first" in line["values"]]
    assert [line.get("xai/faulty/similarity_first") for line in lines] == [None, 1, 1]


def test_maps_that_are_not_numbers_are_marked_and_counted(tmp_path, faulty):
    method, becomes = faulty
    becomes(lambda images: torch.nan)
    fit(tmp_path, everyone([GradCAM(), method]))
    (line, *_) = [line for line in record(tmp_path).of("maps") if line["method"] == "faulty"]
    assert all(row["degenerate"] and row["lo"] == row["hi"] == 0 for row in line["rows"])
    assert any("faulty: ValueError: maps hold values that are not numbers" in reason for reason in failures(tmp_path))
    values = next(v["values"] for v in record(tmp_path).of("values") if v["callback"] == "InterpretabilityMetrics")
    assert values["xai/faulty/average_drop"] is None
    assert values["xai/faulty/average_drop/invalid"] == 4
    assert values[KEY] is not None


def test_a_network_that_returns_no_numbers(tmp_path):
    class Broken(Module):
        def forward(self, images):
            return self.network(images) * torch.nan

    trainer = fit(tmp_path, everyone(GradCAM()), Broken())
    assert trainer.state.finished
    assert any("expected numbers from the model" in reason for reason in failures(tmp_path))
    assert (tmp_path / "explanations" / "report.html").exists()


def swap(module):
    """Another network in the place of the one that was there at the start."""
    module.network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def test_a_layer_that_is_gone_after_the_network_was_swapped(tmp_path):
    methods = {"gone": GradCAM("3"), "there": GradCAM("0"), "found": GradCAM()}
    module = Module()
    fit(tmp_path, [Switch(1, swap), *everyone(methods)], module)
    by_epoch = {e: {m["method"] for m in record(tmp_path).of("maps") if m["epoch"] == e} for e in range(3)}
    assert by_epoch == {0: {"gone", "there", "found"}, 1: {"there", "found"}, 2: {"there", "found"}}
    assert any("gone" in reason and "'3'" in reason for reason in failures(tmp_path))


def test_the_network_that_is_there_is_the_one_explained(tmp_path):
    module, watcher = Module(), ExplanationDrift(GradCAM("0"), max_images=9, target=0, on_error="raise")
    fit(tmp_path, [Switch(2, swap), watcher], module)
    expected = GradCAM("0")(module.network, pictures(9, 1).tensors[0], 0)
    expected = expected / expected.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]
    torch.testing.assert_close(watcher.maps["previous"]["gradcam"], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("refuses", ["images", "metrics"])
def test_a_logger_that_refuses(tmp_path, monkeypatch, refuses):
    """Numbers that Lightning itself sends are Lightning's to care for; those of steps are sent by the callbacks."""
    logger = Memory(refuses)
    watching = ExplanationLogger(max_images=3, every_n_epochs=None, every_n_steps=2)
    numbers = InterpretabilityMetrics(metrics=AverageDrop(), max_images=2, every_n_epochs=None, every_n_steps=2)
    quiet = Module()
    callbacks = [watching, numbers] if refuses == "metrics" else [watching]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if refuses == "metrics":  # the costs of an epoch would go through Lightning
            monkeypatch.setattr(WatchSession, "end_epoch", lambda *args: None)
        fit(tmp_path, callbacks, quiet, logger=logger)
    assert trained(quiet, tmp_path)
    assert len(told(caught, "the service is gone")) == 1
    assert len(shown(tmp_path)) == 6
    lines = record(tmp_path).of("failure")
    assert [line["first"] for line in lines] == [True] + [False] * (len(lines) - 1)
    assert len(lines) >= 6


@pytest.mark.parametrize("broken", ["write", "_write_new"])
def test_a_full_disk_costs_no_more_than_what_was_to_be_written(tmp_path, monkeypatch, broken):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, broken, full)
    logger, module = Memory(), Module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, everyone(GradCAM()), module, logger=logger)
    assert trained(module, tmp_path)
    assert len(logger.pictures) >= 3  # the logger gets its pictures nevertheless
    assert len(logger.steps(KEY)) == 3
    warned = told(caught, "No space left on device")
    assert 1 <= len(warned) == len(set(warned))


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        logger, module = Memory(), Module()
        fit(disk, everyone(GradCAM()), module, logger=logger, max_epochs=3)
        assert trained(module, tmp_path)
        assert len(logger.pictures) >= 3
        assert len(record(disk).lines) > 0


class Unlabeled(Module):
    def loss(self, batch):
        return self(batch[0]).square().mean()


def test_batches_without_labels(tmp_path):
    images = DataLoader(TensorDataset(pictures(5, 1).tensors[0]), batch_size=4)  # the last batch has one image
    fit(tmp_path, everyone(GradCAM()), Unlabeled(), train=images, val=images)
    assert failures(tmp_path) == []
    (line, *_) = record(tmp_path).of("maps")
    assert [row["label"] for row in line["rows"]] == [None] * 3
    assert {line["group"] for line in record(tmp_path).of("maps")} == {"panel"}
    assert len(looks(tmp_path, "InterpretabilityMetrics")) == 3


def test_a_target_that_batches_cannot_have_is_said(tmp_path):
    images = DataLoader(TensorDataset(pictures(5, 1).tensors[0]), batch_size=4)
    fit(tmp_path, [ExplanationLogger(target="both", max_images=2)], Unlabeled(), train=images, val=images)
    assert any("expected labels in the batch for target='label'" in reason for reason in failures(tmp_path))


def test_an_empty_validation_set(tmp_path):
    empty = DataLoader(TensorDataset(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.long)), batch_size=4)
    module = Module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, everyone(GradCAM()), module, val=empty)
    assert trained(module, tmp_path)
    assert len(told(caught, "is the validation set empty?")) == 1  # not once for each of the callbacks


def test_a_single_image_in_the_last_batch(tmp_path):
    fit(tmp_path, everyone(GradCAM(), on_error="raise"), val=loader(5))
    assert len(looks(tmp_path, "InterpretabilityMetrics")) == 3


class FailsAtFirst(InterpretabilityMetrics):
    def compute(self, session, context, step):
        if step.epoch == 0:
            raise RuntimeError("not yet")
        return super().compute(session, context, step)


class FailsAtLast(InterpretabilityMetrics):
    def compute(self, session, context, step):
        if step.epoch == 1:
            raise RuntimeError("no more")
        return super().compute(session, context, step)


@pytest.mark.parametrize("kind", [FailsAtFirst, FailsAtLast])
def test_who_monitors_a_number_that_fails_goes_on(tmp_path, kind):
    keeper = ModelCheckpoint(tmp_path, monitor=KEY, save_top_k=-1)
    callbacks = [kind(metrics=AverageDrop(), max_images=4), keeper]
    if kind is FailsAtLast:
        callbacks.append(EarlyStopping(KEY, patience=5))
    trainer = fit(tmp_path, callbacks, enable_checkpointing=True)
    assert trainer.current_epoch == 3
    assert failures(tmp_path) == [f"RuntimeError: {'not yet' if kind is FailsAtFirst else 'no more'}"]


def test_a_network_cannot_be_found(tmp_path):
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.other = small_network(seed=1)

        forward = L.LightningModule.forward

        def loss(self, batch):
            return (self.network(batch[0]) + self.other(batch[0])).square().mean()

    fit(tmp_path, everyone(GradCAM()), Two())
    assert any("got ['network', 'other']" in reason and "pass network=" in reason for reason in failures(tmp_path))
    fit(tmp_path / "named", everyone(GradCAM(), network="other", on_error="raise"), Two())
