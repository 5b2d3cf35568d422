"""A training goes on from a checkpoint whose state of the callbacks has other names, types or parts."""

import copy
import random
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.families import few
from support.watched import Module, fit, record, small_network

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
    TrainingCurves,
)
from interpretable_training.metrics import AverageDrop

WRONG = [None, "text", "", 7, -1, 10**30, 0.5, float("nan"), True, [], ["x"], [1, 2, 3], {}, {"x": 1}, {3: None}]
WRONG += [torch.zeros(2), torch.zeros(0, 4, 4), {"x": {"y": torch.ones(3, 3)}}, [{"epoch": 1}], "\0", "\ud800"]
CHECKPOINTS = 12  # each with a corruption in each of the callbacks


def everyone():
    methods, options = GradCAM(), {"on_error": "raise"}
    return [
        ExplanationLogger(methods, max_images=3, hardest=2, scale="run", **options),
        InterpretabilityMetrics(methods, metrics=AverageDrop(), max_images=4, **options),
        ExplanationDrift(methods, max_images=3, monitor="val/loss", mode="min", **options),
        ExplanationAlarms(methods, max_images=3, border=0.3, drift=1e-6, **options),
        RandomizationTest(methods, max_images=2, **options),
        TrainingCurves(),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the checkpoint of the first epoch."""
    folder = tmp_path_factory.mktemp("first")
    keeper = ModelCheckpoint(folder, filename="kept")
    fit(folder, [*everyone(), keeper], Module(small_network()), enable_checkpointing=True, max_epochs=1)
    return torch.load(folder / "kept.ckpt", weights_only=True)


def places(state, before=()):
    """Yield the path of each value in nested mappings and lists."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else []
    for key, value in items:
        yield (*before, key)
        yield from places(value, (*before, key))


def corrupted(state, draw):
    """The state with one part gone, added or of another type."""
    state = copy.deepcopy(state)
    kind = draw.choice(["gone", "other", "other", "added", "all"])
    if kind == "all":
        return draw.choice(["text", 7, ["x"], {"x": 1}, {"budget": None, "gallery": 3}]), kind
    *way, last = draw.choice(list(places(state)))
    part = state
    for key in way:
        part = part[key]
    if kind == "added" and isinstance(part, dict):
        part["of a later version"] = draw.choice(WRONG)
    elif kind == "gone":
        del part[last]
    else:
        part[last] = draw.choice(WRONG)
    return state, f"{kind} {way} {last}"


def ours(checkpoint):
    return [key for key in checkpoint["callbacks"] if not key.startswith("ModelCheckpoint")]


@pytest.mark.parametrize("seed", few(range(CHECKPOINTS), 0, 1, 2))
def test_corrupted_states_are_defaults_and_the_run_goes_on(tmp_path, written, seed):
    draw, checkpoint = random.Random(seed), copy.deepcopy(written)
    assert len(ours(checkpoint)) == 6
    printed = [corrupted(checkpoint["callbacks"][key], draw) for key in ours(checkpoint)]
    checkpoint["callbacks"] |= dict(zip(ours(checkpoint), (state for state, _ in printed)))
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(
            tmp_path, everyone(), Module(small_network()), ckpt_path=tmp_path / "other.ckpt", weights_only=True,
            max_epochs=2,
        )  # fmt: skip
    assert trainer.state.finished, printed
    assert trainer.current_epoch == 2
    assert {line["method"] for line in record(tmp_path).of("drift") if line["epoch"] == 1} == {"gradcam"}, printed
    assert record(tmp_path).of("failure") == [], printed
    owners = [str(w.message).split()[0] for w in caught if "goes on from a checkpoint" in str(w.message)]
    assert len(owners) == len(set(owners))  # one warning for each callback at most


WAYS = [
    ("last_step",),
    ("last_epoch",),
    ("reasons",),
    ("budget",),
    ("budget", "level"),
    ("journal",),
    ("journal", "run"),
]


@pytest.mark.parametrize("way", WAYS, ids=".".join)
@pytest.mark.parametrize("how", ["gone", "other"])
def test_one_warning_names_what_is_not_as_expected(written, way, how):
    (key,) = [key for key in ours(written) if key.startswith("ExplanationDrift")]
    state = copy.deepcopy(written["callbacks"][key])
    part = state
    for name in way[:-1]:
        part = part[name]
    if how == "gone":
        del part[way[-1]]
    else:
        part[way[-1]] = 1.5
    drift = everyone()[2]
    with pytest.warns(UserWarning, match=r"ExplanationDrift goes on from a checkpoint") as caught:
        drift.load_state_dict(state)
    assert len(caught) == 1
    assert f"'{way[0]}" in str(caught[0].message)
    assert len(drift.history) == 1  # the rest is there
    assert drift.maps["first"]["gradcam"].shape == (3, 16, 16)


def test_an_unchanged_state_is_restored_without_a_warning(written, recwarn):
    for callback, key in zip(everyone(), ours(written)):
        callback.load_state_dict(copy.deepcopy(written["callbacks"][key]))
        results, expected = callback.state_dict(), copy.deepcopy(written["callbacks"][key])
        if expected.pop("journal", None):
            results.pop("journal")
            assert callback.address == written["callbacks"][key]["journal"]
        assert repr(results) == repr(expected)
    assert [str(w.message) for w in recwarn if "goes on from" in str(w.message)] == []


@pytest.mark.parametrize(("level", "images"), [(3, 2), (-2, 16), (10**30, 16), (2**40, 1)])
def test_a_level_of_thrift_is_never_out_of_range(level, images):
    metrics = InterpretabilityMetrics(metrics=AverageDrop(), max_images=16, budget=0.1)
    state = {**metrics.state_dict(), "budget": {"level": level}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics.load_state_dict(state)
    assert metrics.budget.keep(16) == images
    assert metrics.budget.stretch(16) < 2**65
