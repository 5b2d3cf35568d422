"""What is wrong with callbacks that are right alone, and what mistakes in building them are answered with."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, LayerCAM, explain
from interpretable_training.callbacks import ExplanationLogger, InterpretabilityMetrics
from interpretable_training.metrics import AverageDrop, Complexity
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier


def fit(folder, *callbacks):
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 2), 4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, "default_root_dir": folder, **quiet}
    trainer = L.Trainer(max_epochs=3, callbacks=list(callbacks), **options)
    trainer.fit(Classifier(TinyCNN(2), 2), loader, loader)
    return trainer


def test_two_that_overwrite_each_other_are_named(tmp_path):
    two = ExplanationLogger(max_images=2), ExplanationLogger({"gradcam": LayerCAM()}, max_images=4)
    with pytest.warns(UserWarning, match=r"different names in two ExplanationLogger, got \['gradcam'\] in both"):
        fit(tmp_path, *two)
    metrics = {"drop": AverageDrop()}
    two = InterpretabilityMetrics(metrics=metrics, max_images=2), InterpretabilityMetrics(metrics=metrics, max_images=4)
    with pytest.warns(UserWarning, match=r"got \['gradcam/drop'\] in both.*\{'other_gradcam': GradCAM\(\)\}"):
        fit(tmp_path, *two)


def test_two_with_names_or_metrics_or_stages_of_their_own_work(tmp_path):
    two = [ExplanationLogger(max_images=2), ExplanationLogger({"other": GradCAM()}, max_images=4)]
    two += [InterpretabilityMetrics(metrics=[metric], max_images=2) for metric in (AverageDrop(), Complexity())]
    two += [ExplanationLogger(max_images=3, stages=["validate"])]
    logged = fit(tmp_path, *two).callback_metrics
    assert {"xai/gradcam/average_drop", "xai/gradcam/complexity"} <= set(logged)


@pytest.mark.parametrize("finite", [True, False])
def test_early_stopping_of_a_look_that_fails(tmp_path, finite):
    """With check_finite the training ends although looking "never ends a run": this is said before."""
    stop = EarlyStopping("xai/gradcam/complexity", patience=5, check_finite=finite)
    broken = InterpretabilityMetrics(GradCAM("typo"), Complexity(), max_images=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, broken, stop)
    printed = [str(w.message) for w in said if "pass it check_finite=False" in str(w.message)]
    assert len(printed) == finite
    assert trainer.current_epoch == (1 if finite else 3)


@pytest.mark.parametrize(
    ("methods", "came"),
    [
        (3, "got 3; write for example GradCAM()"),
        ({"a": 3}, "as 'a', got 3"),
        ([LayerCAM], "got the class LayerCAM; write LayerCAM()"),
        (LayerCAM, "got the class LayerCAM; write LayerCAM()"),
    ],
)
def test_what_is_no_method(methods, came):
    for build in (
        ExplanationLogger,
        InterpretabilityMetrics,
        lambda m: explain(m, nn.Flatten(), torch.zeros(1, 1, 4, 4)),
    ):
        with pytest.raises(TypeError) as error:
            build(methods)
        assert came in str(error.value)


@pytest.mark.parametrize("methods", ["LayerCAM", ["layercam"], {"layercam": "LayerCAM"}])
def test_methods_may_be_names(methods):
    assert ExplanationLogger(methods).methods == {"layercam": LayerCAM()}
    with pytest.raises(ValueError, match=r"expected the name of a method, such as 'GradCAM', got 'gradcm'; closest: "):
        ExplanationLogger("gradcm")


def test_methods_take_no_modules():
    net = TinyCNN(2)
    with pytest.raises(TypeError, match="expected layer of GradCAM without a module, got a TinyCNN; a method is built"):
        GradCAM(net, ["stage2"])


def test_options_that_do_not_exist():
    with pytest.raises(TypeError, match=r"option of ExplanationLogger, got 'max_imgs'; closest: \['max_images'"):
        ExplanationLogger(max_imgs=4)
    with pytest.raises(
        TypeError, match=r"option of InterpretabilityMetrics, got 'clas_names'; closest: \['class_names'"
    ):
        InterpretabilityMetrics(clas_names=["a"])
    with pytest.raises(ValueError, match=r"share of the epoch's time up to 1, got 5; 0\.05 is 5 %"):
        ExplanationLogger(budget=5)
