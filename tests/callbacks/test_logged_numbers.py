"""Logged numbers equal those computed by hand, and their names follow one rule in all stages."""

import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from support.watched import (
    BATCHES,
    Memory,
    Module,
    Notes,
    context_of,
    fit,
    loader,
    of_callback,
    pictures,
    record,
    trainer_of,
)
from torch.utils.data import DataLoader

from interpretable_training.attribution import Attribution, GradCAM, LayerCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
)
from interpretable_training.callbacks.watching.explanations import Explained
from interpretable_training.callbacks.watching.map_changes import compare_maps
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.metrics import AverageDrop, AverageGain, Insertion, evaluate

ENDS = [(e, BATCHES * (e + 1)) for e in range(3)]


@dataclass(frozen=True)
class Given(Attribution):
    """Shows the first channel of the image itself."""

    def attribute(self, prepared, images, target):
        return images[:, 0].clone()


@pytest.mark.parametrize("target", ["label", "pred"])
def test_metrics_are_those_of_evaluate_on_the_same_images(tmp_path, target):
    methods = {"gradcam": GradCAM(), "layercam": LayerCAM("0")}
    metrics = {"ad": AverageDrop(), "ag": AverageGain(), "insertion": Insertion(steps=4)}
    notes = Notes()
    watcher = InterpretabilityMetrics(methods, metrics, max_images=6, target=target, controls=True, on_error="raise")
    trainer = fit(tmp_path, [notes, watcher])
    seen = pictures(9, 1)
    ids = sorted(context_of(trainer, watcher).panel.ids)
    images = DataLoader(torch.utils.data.Subset(seen, ids), batch_size=4)
    for values, network in zip(of_callback(tmp_path, "InterpretabilityMetrics"), notes.networks):
        black = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        table = evaluate(network, methods, metrics, images, target, resamples=2, progress=False, **black)
        for method in ("gradcam", "layercam", "fakecam"):
            for name in metrics:
                assert values[f"xai/{method}/{name}"] == pytest.approx(table[method, name].mean, rel=1e-5)
    assert float(trainer.callback_metrics["xai/gradcam/ad"]) == pytest.approx(values["xai/gradcam/ad"])
    passports = {line["metric"]: line["facts"] for line in record(tmp_path).of("passport")}
    assert {*passports} == {*metrics}
    assert "formula" in passports["ad"]


def test_the_best_of_each_number_is_kept(tmp_path):
    metrics = {"ad": AverageDrop(), "ag": AverageGain()}
    watcher = InterpretabilityMetrics(metrics=metrics, max_images=6, on_error="raise")
    fit(tmp_path, [watcher])
    values = of_callback(tmp_path, "InterpretabilityMetrics")
    assert watcher.best["xai/gradcam/ad"] == min(v["xai/gradcam/ad"] for v in values)
    assert watcher.best["xai/gradcam/ag"] == max(v["xai/gradcam/ag"] for v in values)


# Drift


def test_drift_of_maps_by_hand():
    a = torch.tensor([[[4.0, 3], [2, 1]]])
    assert {k: v.item() for k, v in compare_maps(a, a).items()} == {"similarity": 1, "shift": 0}
    b = torch.tensor([[[1.0, 2], [3, 4]]])  # a tenth of the mass from each to the next: 0.3 + 0.1 of it have to move
    assert {k: v.item() for k, v in compare_maps(a, b).items()} == pytest.approx({"similarity": -1, "shift": 0.4})
    c = torch.tensor([[[0.0, 0], [0, 1]]])
    assert compare_maps(a, c)["shift"].item() == pytest.approx(0.9)
    assert compare_maps(a, torch.zeros(1, 2, 2))["shift"].isnan().all()


def test_drift_against_each_reference(tmp_path):
    """The best look is the one whose validation loss was the least so far."""

    class Scripted(Module):
        losses = [3.0, 1.0, 2.0, 5.0]

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.losses[self.trainer.current_epoch])

    notes = Notes()
    watcher = ExplanationDrift(max_images=9, target=0, monitor="val/loss", mode="min", on_error="raise")
    fit(tmp_path, [notes, watcher], Scripted(), max_epochs=4)
    maps = [GradCAM()(network, pictures(9, 1).tensors[0], 0) for network in notes.networks]
    values = of_callback(tmp_path, "ExplanationDrift")
    for reference, of in {"first": [0, 0, 0, 0], "previous": [0, 0, 1, 2], "best": [None, 0, 1, 1]}.items():
        for look, then in enumerate(of):
            results = values[look].get(f"xai/gradcam/similarity_{reference}")
            if then is None:
                assert results is None
                continue
            expected = compare_maps(maps[look], maps[then])
            assert results == pytest.approx(float(expected["similarity"].nanmean()), abs=2e-3)
            shift = values[look][f"xai/gradcam/shift_{reference}"]
            assert shift == pytest.approx(float(expected["shift"].nanmean()), abs=2e-3)
    rows = record(tmp_path).of("drift")[1]["rows"]
    mean = sum(row["first"]["shift"] for row in rows) / 9
    assert mean == pytest.approx(values[1]["xai/gradcam/shift_first"])


def test_maps_that_stay_the_same_do_not_drift(tmp_path):
    fit(tmp_path, [ExplanationDrift(Given(), max_images=4, on_error="raise")])
    *steps, last = of_callback(tmp_path, "ExplanationDrift")
    for values in steps:
        assert {round(v, 6) for k, v in values.items() if "similarity" in k} == {1}
        assert {v for k, v in values.items() if "shift" in k} == {0}
    first = record(tmp_path).of("drift")[0]["step"]
    assert {k: v for k, v in last.items() if "xai/given" in k} == {"xai/given/stabilization_step": first}
    epochs = [line["epoch"] for line in record(tmp_path).of("values")]
    assert epochs[-1] == epochs[-2]  # none that was not trained


def test_stabilization_step_is_the_first_with_small_later_shifts():
    watcher = ExplanationDrift({"settles": GradCAM(), "moves": GradCAM()})
    shifts = {"settles": [0, 0.5, 0.3, 0.04, 0.02], "moves": [0, 0, 0, 0, float("nan")]}
    watcher.history = [
        {"epoch": i, "step": 10 * (i + 1), "values": {f"xai/{name}/shift_previous": s[i] for name, s in shifts.items()}}
        for i in range(5)
    ]
    assert watcher.stabilization_steps() == {"xai/settles/stabilization_step": 30}
    watcher.began = 3  # other images from here on
    assert watcher.stabilization_steps() == {"xai/settles/stabilization_step": 40}


def test_a_process_that_fails_once_takes_no_reference_away():
    watcher = ExplanationDrift(max_images=4)
    step = SimpleNamespace(epoch=0, global_step=0)
    whole, half = look_of([0, 1, 2, 3]), look_of([0, 2])
    watcher.values([whole], step)
    assert watcher.values([half], step) == {}
    assert watcher.values([whole], step)["xai/gradcam/similarity_first"] == pytest.approx(1)


def look_of(ids):
    maps = {"pred": {"gradcam": torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0))[ids]}}
    n = len(ids)
    targets = {"pred": torch.zeros(n, dtype=torch.long)}
    return Explained(ids, torch.zeros(n, 3, 4, 4), None, torch.zeros(n, 3), targets=targets, maps=maps)


PREFIX = {"fit": "", "validate": "validate/", "test": "test/"}


@pytest.mark.parametrize("stage", PREFIX)
def test_names_of_numbers_and_pictures_follow_the_rule(tmp_path, stage):
    options = {"max_images": 3, "stages": list(PREFIX), "on_error": "raise"}
    callbacks = [
        ExplanationLogger(hardest=1, **options),
        InterpretabilityMetrics(metrics=AverageDrop(), **options),
        ExplanationDrift(**options),
        ExplanationAlarms(alike=-1.0, **options),
        RandomizationTest(max_images=2, on_error="raise"),
    ]
    logger, module = Memory(), Module()
    trainer = trainer_of(tmp_path, callbacks, logger=logger, max_epochs=1)
    if stage == "fit":
        trainer.fit(module, loader(16, 0), loader())
    else:
        getattr(trainer, stage)(module, loader(), verbose=False)
    numbers = {name for _, metrics in logger.numbers for name in metrics if "xai" in name}
    pictures = {name for _, _, images in logger.pictures for name in images}
    journal = {name for line in record(tmp_path).of("values") for name in line["values"]}
    rule = re.compile(rf"{PREFIX[stage]}xai/[\w/]+")
    for names in (numbers, pictures, journal):
        assert names
        assert [name for name in names if not rule.fullmatch(name)] == []
    assert f"{PREFIX[stage]}xai/gradcam/average_drop" in numbers & journal
    assert pictures >= {f"{PREFIX[stage]}xai/{name}" for name in ("images", "gradcam", "hardest/gradcam")}


def test_prefix_is_that_of_the_stage():
    assert {stage: ExplanationStep(stage, 0, 0, 0).prefix for stage in PREFIX} == PREFIX
