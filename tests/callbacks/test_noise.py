"""Warnings and files: one reason once in a run, no warnings of other libraries that we cause, one folder."""

import warnings

import lightning as L
import pytest
from support.watched import Module, fit, loader, pictures, record
from torch.utils.data import DataLoader

from interpretable_training.attribution import GradCAM, LayerCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    TrainingCurves,
)
from interpretable_training.testing import verify_observer

FEW = {"max_images": 2}
MISSING = {"gradcam": GradCAM("none"), "layercam": LayerCAM("none")}


def everyone(methods=None):
    alarms = ExplanationAlarms(methods, alike=0.9, **FEW)
    return [
        ExplanationLogger(methods, hardest=0, **FEW),
        InterpretabilityMetrics(methods, **FEW),
        ExplanationDrift(methods, **FEW),
        alarms,
    ]


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A training of two epochs in which every method of four callbacks misses its layer."""
    folder = tmp_path_factory.mktemp("failing")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, [*everyone(MISSING), TrainingCurves()], max_epochs=2)
    return folder, [str(warning.message) for warning in caught]


def test_one_reason_is_warned_of_once_in_a_run(failing):
    folder, texts = failing
    assert len([text for text in texts if "expected the name of a layer" in text]) == 1
    lines = record(folder).of("failure")
    assert {line["callback"] for line in lines} == {
        "ExplanationLogger",
        "InterpretabilityMetrics",
        "ExplanationDrift",
        "ExplanationAlarms",
    }  # each of them is counted


def test_other_libraries_do_not_warn_because_of_us(failing):
    _, texts = failing
    assert not [text for text in texts if "legend" in text or "have no logger" in text]


def test_without_a_logger_all_files_lie_in_one_folder(failing):
    folder, _ = failing
    assert [path.name for path in folder.iterdir()] == ["explanations"]
    assert (folder / "explanations" / "report.html").is_file()


def test_verify_observer_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}

    def make_trainer(given):
        return L.Trainer(max_epochs=1, callbacks=[*given], logger=False, accelerator="cpu", **quiet)

    data = lambda: (loader(8, 0), DataLoader(pictures(6, 1), batch_size=3))  # noqa: E731
    report = verify_observer(make_trainer, Module, data, lambda: [*everyone(), TrainingCurves()])
    report.raise_if_different()
    assert list(tmp_path.iterdir()) == []


def test_drift_curves_without_points_have_no_legend():
    from interpretable_training.visual.drift_curves import draw_drift

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_drift([{"step": 1, "values": {}}], ["gradcam"]).shape[-1] == 3
