"""The schedule of explanation steps, wherever Lightning validates or does not."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from support.watched import BATCHES, Memory, Module, failures, fit, loader, looks, pictures, record, shown, trainer_of
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.metrics import AverageDrop

KEY = "xai/gradcam/average_drop"


def drop(**options):
    return InterpretabilityMetrics(metrics=AverageDrop(), max_images=4, **options)


def panel(**options):
    return ExplanationLogger(max_images=3, **{"hardest": 0, **options})


class Stream(IterableDataset):
    def __init__(self, data=None):
        self.data = data or pictures(9, 1)

    def __iter__(self):
        return iter([self.data[i] for i in range(len(self.data))])


def streamed():
    return DataLoader(Stream(), batch_size=4)


def test_streams_have_one_report_for_all_callbacks(tmp_path):
    watching = [ExplanationLogger(max_images=4), ExplanationLogger(GradCAM("0"), max_images=3), ExplanationDrift()]
    fit(tmp_path, watching, val=streamed(), max_epochs=2)
    reports = [dict(line["probe"]) for line in record(tmp_path).of("run")]
    assert [len(report) > 2 for report in reports] == [False, True, True]  # the last has more images than the stream
    assert {name.split(":")[0] for name in reports[1] if ":" in name} == {"ExplanationLogger", "ExplanationLogger 2"}


ENDS = [(e, BATCHES * (e + 1)) for e in range(7)]
CASES = {
    "each epoch": ({}, {}, ENDS[:3]),
    "third epochs and the last": ({"every_n_epochs": 3}, {"max_epochs": 6}, [ENDS[0], ENDS[3], ENDS[5]]),
    "steps alone": ({"every_n_epochs": None, "every_n_steps": 5}, {}, [(1, 5), (2, 10)]),
    "steps and epochs": ({"every_n_steps": 3}, {}, [(0, 3), ENDS[0], (1, 6), ENDS[1], (2, 9), ENDS[2]]),
    "steps of several batches": (
        {"every_n_epochs": None, "every_n_steps": 1},
        {"accumulate_grad_batches": 2, "max_epochs": 1},
        [(0, 1), (0, 2)],
    ),
    "mid-epoch": ({"every_n_epochs": 2}, {"val_check_interval": 2}, [(0, 2), ENDS[0], (2, 10), ENDS[2]]),
    "steps where it validates": ({"every_n_steps": 2}, {"max_epochs": 1}, [(0, 2), (0, 4)]),
    "validation counts batches": (
        {},
        {"val_check_interval": 6, "check_val_every_n_epoch": None},
        [ENDS[0], (1, 6), ENDS[2]],
    ),
    "every other epoch": ({}, {"check_val_every_n_epoch": 2, "max_epochs": 4}, ENDS[:4]),
    "no validation": ({}, {"val": None}, ENDS[:3]),
    "no batch of validation": ({}, {"limit_val_batches": 0}, ENDS[:3]),
    "no validation, steps too": (
        {"every_n_steps": 3},
        {"val": None},
        [(0, 3), ENDS[0], (1, 6), ENDS[1], (2, 9), ENDS[2]],
    ),
    "few batches of validation": ({}, {"limit_val_batches": 1}, ENDS[:3]),
    "no sanity check": ({}, {"num_sanity_val_steps": 0}, ENDS[:3]),
    "no sanity check, every other epoch": (
        {},
        {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 4},
        [ENDS[1], ENDS[2], ENDS[3]],
    ),
    "stopped in an epoch": ({"every_n_epochs": 5}, {"max_steps": 6, "max_epochs": -1}, [ENDS[0], (1, 6)]),
    "overfit": ({}, {"overfit_batches": 2}, [(0, 2), (1, 4), (2, 6)]),
    "stream": ({}, {"val": streamed}, ENDS[:3]),
    "streams alone": ({}, {"val": None, "train": streamed}, [(0, 3), (1, 6), (2, 9)]),
    "list of loaders": ({}, {"val": lambda: [loader(), loader(5, 2)]}, ENDS[:3]),
    "dict of loaders": ({}, {"val": lambda: {"a": loader(), "b": loader(5, 2)}}, ENDS[:3]),
}


@pytest.mark.parametrize("case", CASES)
def test_looks(tmp_path, case):
    watch, options, expected = CASES[case]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    logger = Memory()
    fit(tmp_path, [drop(on_error="raise", **watch), panel(on_error="raise", **watch)], logger=logger, **options)
    assert looks(tmp_path, "InterpretabilityMetrics") == expected
    assert shown(tmp_path) == expected
    assert [(epoch, step + 1) for step, epoch, _ in logger.pictures] == expected
    assert [step + 1 for step in logger.steps(KEY)] == [step for _, step in expected]


def test_sanity_check_explains_nothing_and_the_table_follows_it(tmp_path):
    seen = []

    class Sees(L.Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.append((list(tmp_path.rglob("*")), logger.pictures + logger.numbers, dict(trainer.callback_metrics)))

    logger = Memory()
    fit(tmp_path, [drop(on_error="raise"), panel(on_error="raise"), Sees()], logger=logger, num_sanity_val_steps=-1)
    ((files, sent, metrics),) = seen
    assert (files, sent, [name for name in metrics if "xai" in name]) == ([], [], [])
    (run,) = record(tmp_path).of("run")
    table = dict(run["probe"])
    assert table["network"] == "network (Sequential) of Module"
    assert table["batches"] == "images (3, 16, 16) from 0, labels from 1"
    assert table["colors"] == "images lie in [0, 1]"
    assert table["ExplanationLogger: layer"] == "3 (gradcam, 8 x 8)"
    assert "s for 4 images" in table["InterpretabilityMetrics: an explanation step"]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_stages_alone_under_inference_mode(tmp_path, stage):
    logger, stages = Memory(), ("fit", "validate", "test")
    watching = [drop(stages=stages, on_error="raise"), panel(stages=stages, on_error="raise", hardest=2)]
    trainer, module = trainer_of(tmp_path, watching, logger=logger), Module()
    for _ in range(2):  # each of them is looked at
        (values,) = getattr(trainer, stage)(module, loader(), verbose=False)
        prefix = f"{stage}/"
        assert 0 <= values[prefix + KEY] <= 100
    assert looks(tmp_path, "InterpretabilityMetrics") == [(0, 0), (0, 0)]
    groups = {"validate": {"panel", "hardest"}, "test": {"test-panel", "test-hardest"}}[stage]
    assert {line["group"] for line in record(tmp_path).of("maps")} == groups
    keys = {key for _, _, images in logger.pictures for key in images}
    assert keys == {f"{prefix}xai/{name}" for name in ("images", "gradcam", "hardest/gradcam")}
    assert failures(tmp_path) == []
    assert (tmp_path / "report.html").exists()


def test_stages_that_were_not_asked_for_are_left_alone(tmp_path):
    fitting, testing = drop(stages=("fit",), on_error="raise"), panel(stages=("test",), on_error="raise")
    trainer, module = trainer_of(tmp_path, [testing, fitting]), Module()
    trainer.fit(module, loader(16, 0), loader())
    trainer.validate(module, loader(), verbose=False)
    assert shown(tmp_path) == []
    assert looks(tmp_path, "InterpretabilityMetrics") == ENDS[:3]
    trainer.test(module, loader(), verbose=False)
    assert shown(tmp_path, "test-panel") == [(3, 12)]
    assert looks(tmp_path, "InterpretabilityMetrics") == ENDS[:3]


@pytest.mark.parametrize("last", ["fit", "test"])
def test_shared_work_is_done_whichever_callback_is_last(tmp_path, last):
    """The table, the costs and the report, though the last callback does not look in this stage."""
    other = "fit" if last == "test" else "test"
    callbacks = [panel(stages=(other,), on_error="raise"), ExplanationDrift(max_images=2, stages=(last,))]
    trainer = trainer_of(tmp_path, callbacks, max_epochs=1)
    if other == "fit":
        trainer.fit(Module(), loader(16, 0), loader())
        assert "xai/share_of_epoch" in trainer.callback_metrics
    else:
        trainer.test(Module(), loader(), verbose=False)
    assert len(record(tmp_path).of("run")) == 1
    assert (tmp_path / "explanations" / "report.html").exists()


def test_a_dry_run_leaves_no_file(tmp_path):
    trainer = fit(tmp_path, [drop(on_error="raise"), panel(on_error="raise")], fast_dev_run=True)
    assert KEY in trainer.callback_metrics
    trainer.test(Module(), loader(), verbose=False)
    assert list(tmp_path.rglob("*")) == []


class TwoOptimizers(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        parts = self.network[:2], self.network[2:]
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]


def test_steps_of_two_optimizers_count_each(tmp_path):
    watch = {"every_n_epochs": None, "every_n_steps": 3, "on_error": "raise"}
    fit(tmp_path, [drop(**watch)], TwoOptimizers(), max_epochs=1)
    assert looks(tmp_path, "InterpretabilityMetrics") == [(0, 4), (0, 6)]  # after each batch there are two steps more


class KeepsWeights(L.Callback):
    """Notes the weights with which it trains, and those with which it validates."""

    def on_validation_start(self, trainer, pl_module):
        self.raw = {name: value.clone() for name, value in pl_module.network.state_dict().items()}

    def on_validation_epoch_start(self, trainer, pl_module):
        self.used = {name: value.clone() for name, value in pl_module.network.state_dict().items()}


@pytest.mark.parametrize("watcher_first", [True, False])
def test_averaged_weights_are_the_ones_explained(tmp_path, watcher_first):
    average, watcher = EMAWeightAveraging(decay=0.5), ExplanationDrift(max_images=9, on_error="raise", target=0)
    weights = KeepsWeights()
    callbacks = [watcher, average] if watcher_first else [average, watcher]
    module = Module()
    fit(tmp_path, [*callbacks, weights], module, max_epochs=1)
    images = pictures(9, 1).tensors[0]
    module.network.load_state_dict(weights.used)
    expected = GradCAM()(module.network, images, 0)
    seen = watcher.maps["previous"]["gradcam"]
    scale = expected.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]
    assert_close(seen, expected / scale, atol=1e-3, rtol=0)
    assert not any(torch.equal(weights.raw[name], value) for name, value in weights.used.items())


@pytest.mark.parametrize("val", ["usual", None], ids=["validated", "not validated"])
@pytest.mark.parametrize("watcher_first", [True, False])
def test_others_see_the_numbers_of_the_same_epoch(tmp_path, watcher_first, val):
    class Plateau(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": KEY}}

    keeper = ModelCheckpoint(tmp_path, monitor=KEY, mode="min", save_top_k=-1, filename="{epoch}")
    keeper.CHECKPOINT_EQUALS_CHAR = "-"
    stopper = EarlyStopping(KEY, patience=9, check_on_train_epoch_end=val is None)
    watcher = drop(on_error="raise")
    callbacks = [watcher, stopper, keeper] if watcher_first else [keeper, stopper, watcher]
    trainer = fit(tmp_path, callbacks, Plateau(), val=val, enable_checkpointing=True)
    printed = [line["values"][KEY] for line in record(tmp_path).of("values") if KEY in line["values"]]
    assert len(printed) == 3
    saved = {path: float(value) for path, value in keeper.best_k_models.items()}
    assert [saved[str(tmp_path / f"epoch-{epoch}.ckpt")] for epoch in range(3)] == pytest.approx(printed, rel=1e-5)
    assert float(stopper.best_score) == pytest.approx(min(printed), rel=1e-5)
    assert trainer.lr_scheduler_configs[0].scheduler.best == pytest.approx(min(printed), rel=1e-5)


def test_a_callback_of_an_earlier_training_begins_anew(tmp_path):
    """As it stays in a notebook."""
    watching = [drop(on_error="raise"), ExplanationDrift(max_images=4), panel(on_error="raise", scale="run")]
    runs = []
    for folder in ("a", "b", "b"):
        module = Module()
        fit(tmp_path / folder, watching, module, max_epochs=1)
        runs.append([line["values"] for line in record(tmp_path / folder).of("values") if len(line["values"]) != 3])
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 2
    assert len(list((tmp_path / "b").rglob("report*.html"))) == 2
