"""The callbacks of a Trainer share one session: what it finds and explains once, and what stays each callback's own."""

import gc
import weakref
from dataclasses import dataclass
from typing import ClassVar

import lightning as L
import pytest
import torch
from support.families import few
from support.faulty import Faulty, raises
from support.watched import Memory, Module, context_of, fit, loader, record, trainer_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from interpretable_training.attribution import Attribution, GradCAM, LayerCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
)
from interpretable_training.callbacks.watching.explanation_memo import same_method
from interpretable_training.callbacks.watching.session import SESSIONS, session_of
from interpretable_training.metrics import AverageDrop, Insertion

CLOCK = ("xai/seconds", "xai/share_of_epoch", "xai/megabytes")
METRICS = {"average_drop": AverageDrop(), "insertion": Insertion(steps=3)}
BUILDERS = {
    "ExplanationLogger": lambda methods, **o: ExplanationLogger(methods, hardest=2, **o),
    "ExplanationDrift": lambda methods, **o: ExplanationDrift(methods, **o),
    "ExplanationAlarms": lambda methods, **o: ExplanationAlarms(methods, alike=-1.0, border=0.0, drift=0.0, **o),
    "InterpretabilityMetrics": lambda methods, **o: InterpretabilityMetrics(methods, METRICS, **o),
}
PANEL = 6


def build(names=tuple(BUILDERS), methods=None, **options):
    options = {"max_images": PANEL, "target": "label", "on_error": "raise", **options}
    return [BUILDERS[name](methods or GradCAM(), **options) for name in names]


class Counted(GradCAM):
    """Counts the images that it explains."""

    images: ClassVar[list] = []

    def combine(self, A, dA):
        self.images.append(len(A))
        return super().combine(A, dA)


class GradientPasses(L.Callback):
    """Counts the images that the network gets with gradients outside of the training step."""

    def on_fit_start(self, trainer, pl_module):
        self.images = 0
        pl_module.network.register_forward_pre_hook(self.count)

    def count(self, network, args):
        if torch.is_grad_enabled() and not network.training:
            self.images += len(args[0])


class StepsOfFit(L.Callback):
    """Empties counters after the start-up report."""

    def __init__(self, *counters):
        self.counters = counters

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            Counted.images.clear()
            for counter in self.counters:
                counter.images = 0


@pytest.mark.parametrize("batch_size", [4, 9])
@pytest.mark.parametrize("target", ["label", "pred"])
def test_four_callbacks_cost_one_pass_per_image_and_step(tmp_path, target, batch_size):
    passes = GradientPasses()
    callbacks = build(methods={"cam": Counted()}, target=target, stages=["fit"], every_n_steps=3)
    callbacks[0].hardest.k = 0
    val = loader(9, batch_size=batch_size)
    fit(tmp_path, [passes, StepsOfFit(passes), *callbacks], val=val, max_epochs=2)
    steps = {line["step"] for line in record(tmp_path).of("maps")}
    assert len(steps) == 4
    assert sum(Counted.images) == passes.images == PANEL * len(steps)


def journal_of(folder, name):
    """Lines of a callback, without times."""
    kinds = {"ExplanationLogger": ("maps", "image"), "ExplanationDrift": ("drift",), "ExplanationAlarms": ("alarm",)}
    lines = record(folder).of("values", "failure", *kinds.get(name, ("passport",)))
    facts = []
    for line in lines:
        if line.get("callback", name) == name and not set(CLOCK) & {*line.get("values", {})}:
            facts.append({key: value for key, value in line.items() if key not in ("time", "run", "file")})
    return facts


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def pictures_of(logger):
    return {
        (step, epoch, key): [(picture.tobytes(), caption) for picture, caption in shown]
        for step, epoch, images in logger.pictures
        for key, shown in images.items()
    }


CASES = {
    "validation": {},
    "steps": {"every_n_steps": 3},
    "several methods": {"methods": {"gradcam": GradCAM(), "fine": LayerCAM("0"), "faulty": Faulty()}},
    "predicted class": {"target": "pred"},
    "indices, least likely class": {"images": [4, 2, 0], "target": "least"},
    "stages": {"stages": ["fit", "validate", "test"]},
}


def run(folder, callbacks):
    logger, module = Memory(), Module()
    trainer = trainer_of(folder, callbacks, logger=logger, max_epochs=2)
    trainer.fit(module, loader(16, 0), loader())
    if "test" in callbacks[0].options.stages:
        trainer.validate(module, loader(), verbose=False)
        trainer.test(module, loader(9, 2), verbose=False)
    return logger


@pytest.mark.parametrize("case", few(CASES, "several methods", "stages"))
def test_results_equal_those_of_each_callback_alone(tmp_path, case):
    together = run(tmp_path / "all", build(**CASES[case]))
    numbers, files = {}, {}
    for name in BUILDERS:
        logger = run(tmp_path / name, build([name], **CASES[case]))
        assert journal_of(tmp_path / name, name) == journal_of(tmp_path / "all", name)
        files |= files_of(tmp_path / name)
        for step, metrics in logger.numbers:
            numbers.setdefault(step, {}).update(metrics)
        if name == "ExplanationLogger":
            assert pictures_of(together).items() >= pictures_of(logger).items()
    results = {}
    for step, metrics in together.numbers:
        results.setdefault(step, {}).update(metrics)
    drop = lambda rows: {s: {k: v for k, v in m.items() if k not in CLOCK} for s, m in rows.items()}  # noqa: E731
    assert drop(results) == drop(numbers)
    assert files_of(tmp_path / "all") == files


def test_shared_failure_counts_in_every_callback(tmp_path, monkeypatch):
    calls = []

    def act(images):
        calls.append(len(images))
        raise ZeroDivisionError("the method's own mistake")

    monkeypatch.setattr(Faulty, "act", staticmethod(act))
    callbacks = build(methods={"gradcam": GradCAM(), "faulty": Faulty()}, on_error="warn", stages=["fit"])
    fit(tmp_path, callbacks, max_epochs=1)
    lines = [line for line in record(tmp_path).of("failure") if line["epoch"] == 0 and line["step"] == 4]
    assert [line["callback"] for line in lines] == list(BUILDERS)
    assert {line["reason"] for line in lines} == {"faulty: ZeroDivisionError: the method's own mistake"}
    assert all(sum(callback.errors.reasons.values()) == 1 for callback in callbacks)


def test_second_callback_raises_the_original_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Faulty, "act", staticmethod(raises(ZeroDivisionError("the method's own mistake"))))
    callbacks = [*build(["ExplanationLogger"], Faulty(), on_error="warn"), *build(["ExplanationDrift"], Faulty())]
    with pytest.raises(ZeroDivisionError, match="the method's own mistake"):
        fit(tmp_path, callbacks, max_epochs=1)


class Grows(Module):
    """A generator function's position cannot be put back."""

    def __init__(self):
        super().__init__()
        self.factors = (1 + 0.01 * i for i in range(10_000))

    def forward(self, images):
        return self.network(images) * next(self.factors)


def test_lost_state_is_reported_by_every_callback(tmp_path):
    callbacks = build(["ExplanationLogger", "ExplanationDrift"], on_error="warn")
    fit(tmp_path, callbacks, Grows(), max_epochs=1)
    for callback in callbacks:
        assert any("could not be put back" in reason for reason in callback.errors.reasons)


class Sees(L.Callback):
    """Looks at the memory of the session after all other callbacks."""

    def __init__(self):
        self.left, self.seen = [], []

    def on_validation_batch_end(self, trainer, pl_module, *args):
        self.left.append(len(session_of(trainer).memo.batches))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.left.append(len(session_of(trainer).memo.batches))


def test_memory_of_explanations_is_freed_after_each_step(tmp_path):
    sees = Sees()
    fit(tmp_path, [*build(every_n_steps=1), sees])
    assert set(sees.left) == {0}


class Scales(L.Callback):
    """Writes the weights between two callbacks."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *args):
        with torch.no_grad():
            pl_module.network[0].weight.mul_(0.5)


def test_maps_are_not_shared_after_weights_were_written(tmp_path):
    values = {}
    for name, first in {"alone": [], "both": build(["ExplanationLogger"])}.items():
        fit(tmp_path / name, [*first, Scales(), *build(["InterpretabilityMetrics"])], max_epochs=1)
        values[name] = journal_of(tmp_path / name, "InterpretabilityMetrics")
    assert values["alone"] == values["both"]


@pytest.mark.parametrize(
    "other",
    [
        {"max_images": 4},
        {"images": [0, 1]},
        {"seed": 1},
        {"network": "network"},
        {"image_key": 0},
        {"label_key": 1},
        {"output": lambda output: output},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        {"class_names": ["a", "b", "c"]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_panel_options_get_a_context_of_their_own(tmp_path, other):
    options = {"on_error": "raise", "max_images": PANEL}
    one, equal = (ExplanationDrift({name: GradCAM()}, **options) for name in ("one", "equal"))
    different = ExplanationDrift({"different": GradCAM()}, **{**options, **other})
    trainer = fit(tmp_path, [one, equal, different], max_epochs=1, limit_train_batches=1)
    assert context_of(trainer, one) is context_of(trainer, equal)
    assert context_of(trainer, one) is not context_of(trainer, different)


@dataclass(frozen=True)
class HoldsTensor(Attribution):
    weight: Tensor

    def attribute(self, prepared, images, target):
        return images.mean(1)


def test_methods_are_the_same_by_value_or_identity():
    holder = HoldsTensor(torch.ones(3))
    assert same_method(GradCAM("a"), GradCAM("a"))
    assert same_method(GradCAM(["a", "b"]), GradCAM(["a", "b"]))  # not hashable
    assert not same_method(GradCAM("a"), GradCAM("b"))
    assert not same_method(GradCAM("a"), Counted("a"))
    assert same_method(holder, holder)
    assert not same_method(holder, HoldsTensor(torch.ones(3)))  # comparing them raises


def test_method_that_cannot_be_compared_works_in_all_callbacks(tmp_path):
    for methods in (HoldsTensor(torch.ones(3)), [HoldsTensor(torch.ones(3)), GradCAM(["0", "2"])]):
        callbacks = build(["ExplanationLogger", "ExplanationDrift"], methods)
        fit(tmp_path / str(type(methods)), callbacks, max_epochs=1)


def test_session_belongs_to_one_trainer_and_ends_with_it(tmp_path):
    first, second = (trainer_of(tmp_path, []) for _ in range(2))
    assert session_of(first) is session_of(first)
    assert session_of(first) is not session_of(second)
    kept = weakref.ref(first)
    del first
    gc.collect()
    assert kept() is None
    assert second in SESSIONS


def test_swapped_network_is_explained_by_all_callbacks(tmp_path):
    class Swap(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                parts = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
                pl_module.network = nn.Sequential(*parts)

    callbacks = build(methods=GradCAM("0"))
    trainer = fit(tmp_path, [Swap(), *callbacks], max_epochs=2)
    for callback in callbacks:
        assert context_of(trainer, callback).network is trainer.lightning_module.network


def test_stream_gives_each_callback_the_images_of_its_own_time(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([loader(9).dataset[i] for i in range(9)])

    val = DataLoader(Stream(), batch_size=3)
    early, late = build(["ExplanationDrift", "ExplanationDrift"])
    late.methods = {"late": GradCAM()}
    fit(tmp_path / "both", [early, late], val=val, max_epochs=1)
    alone = build(["ExplanationDrift"])
    fit(tmp_path / "alone", alone, val=val, max_epochs=1)
    assert early.ids == late.ids == alone[0].ids
