"""Watching leaves data sets, batch hooks and networks with state of their own as they were, bit for bit."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from support import (
    stateful_layers,  # noqa: F401  # adds to NETWORKS
    stateful_networks,
)
from support.every_callback import EVERYWHERE
from support.families import few
from support.observed_training import Small, loaders, trainers, verify
from support.stateful_networks import NETWORKS
from support.watched import context_of
from torch.utils.data import DataLoader, Dataset, random_split

from interpretable_training.attribution.core.state import StateWarning
from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.callbacks.watching.image_panel import read_panel

pytestmark = pytest.mark.filterwarnings("ignore")
DRAWS = {
    "numpy": (np.random.default_rng, lambda g: g.random()),
    "torch": (lambda seed: torch.Generator().manual_seed(seed), lambda g: float(torch.rand(1, generator=g))),
    "python": (random.Random, lambda g: g.random()),
}


class Transform:
    """A transform with a generator of its own, as albumentations' have."""

    def __init__(self, kind, seed):
        make, self.draw = DRAWS[kind]
        self.generator = make(seed)

    def __call__(self, image):
        return image + 0.1 * self.draw(self.generator)


class Drawing(Dataset):
    """Images that are augmented by a generator of the data set's own, and counted."""

    def __init__(self, kind, seed=0, n=12):
        self.images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(7))
        self.transform, self.read = Transform(kind, seed), 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read += 1
        return self.transform(self.images[i]) + 1e-3 * self.read, i % 3


def watching():
    return [
        ExplanationLogger(max_images=4, hardest=2, **EVERYWHERE),
        InterpretabilityMetrics(max_images=4, **EVERYWHERE),
        ExplanationDrift(max_images=4, **EVERYWHERE),
    ]


@pytest.mark.parametrize("workers", few([0, 1], 0))
@pytest.mark.parametrize("split", few([False, True], True))
@pytest.mark.parametrize("kind", DRAWS)
def test_data_sets_with_a_generator_are_left_alone(tmp_path, kind, split, workers):
    def data():
        options = {"batch_size": 3, "num_workers": workers}
        if not split:
            return DataLoader(Drawing(kind), shuffle=True, **options)
        parts = random_split(Drawing(kind), [6, 6], torch.Generator().manual_seed(0))
        return DataLoader(parts[0], shuffle=True, **options), DataLoader(parts[1], **options)

    class Module(Small):
        validation_step = Small.validation_step if split else None

    verify(tmp_path, watching, make_module=Module, make_data=data).raise_if_different()


class HookDraws(Small):
    """Counts and draws in the hook that prepares batches."""

    def __init__(self):
        super().__init__()
        self.calls, self.generator, self.numbers = 0, torch.Generator().manual_seed(0), np.random.default_rng(0)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, target = batch
        self.calls += 1
        noise = 0.1 * torch.randn(images.shape, generator=self.generator) + 0.1 * self.numbers.random()
        return images + noise + 1e-3 * self.calls, target


class ForwardCounts(Small):
    """The LightningModule itself keeps state in forward."""

    def __init__(self):
        super().__init__()
        self.calls, self.memory = 0, []
        self.register_buffer("queue", torch.zeros(4, 3))

    def forward(self, images):
        logits = self.network(images) * (1 + 1e-3 * self.calls)
        self.calls += 1
        self.memory.append(float(logits.detach().mean()))
        self.queue = torch.cat([logits.detach(), self.queue])[:4]
        return logits + self.queue.mean() + 0.01 * sum(self.memory[-3:])


class ForwardLogs(Small):
    def forward(self, images):
        logits = self.network(images)
        if self._trainer is not None and (self.trainer.training or self.trainer.validating):
            self.log("forward", logits.detach().mean(), on_step=False, on_epoch=True)
        return logits


@pytest.mark.parametrize("module", few([HookDraws, ForwardCounts, ForwardLogs], ForwardCounts))
def test_modules_with_state_are_left_alone(tmp_path, module):
    verify(tmp_path, watching, make_module=module, stages=("fit", "validate")).raise_if_different()


class TrainsOneLayer(Small):
    """Of lazy networks the other layers have no parameters yet."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.c1.parameters(), lr=0.1, momentum=0.9)


FEW = ["MomentumEncoder", "WeightsWrittenByData", "MemoryBank", "Lazy"]


@pytest.mark.parametrize("name", few(NETWORKS, *FEW))
def test_networks_with_state_are_left_alone(tmp_path, name):
    def module():
        stateful_networks.CALLS["n"] = stateful_networks.COUNT = stateful_networks.Counts.calls = 0
        stateful_networks.DefaultArgument.middle.__defaults__[0].clear()
        return TrainsOneLayer(NETWORKS[name]())

    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "limit_val_batches": 1}
    verify(tmp_path, watching, make_module=module, **options).raise_if_different()


class HoldsGenerator(Small):
    """A generator function's position cannot be put back."""

    def __init__(self):
        super().__init__()
        self.steps = (1 + 0.01 * i for i in range(10_000))

    def forward(self, images):
        return self.network(images) * next(self.steps)


def test_state_that_cannot_be_put_back_is_logged_once(tmp_path):
    callback = ExplanationLogger(max_images=2)
    with pytest.warns(UserWarning, match="could not be put back") as warned:
        trained(tmp_path, HoldsGenerator(), [callback])
    about = [str(w.message) for w in warned if "could not be put back" in str(w.message)]
    assert len(about) == 1
    assert "HoldsGenerator changed steps" in about[0]
    assert "verify_observer" in about[0]
    assert any("could not be put back" in reason for reason in callback.errors.reasons)


def test_state_that_cannot_be_restored_is_raised_with_on_error_raise(tmp_path):
    with pytest.raises(StateWarning, match="HoldsGenerator changed steps"):
        trained(tmp_path, HoldsGenerator(), [ExplanationLogger(max_images=2, on_error="raise")])


class ReadsStream(Drawing):
    """Its items come from an iterator, which reading moves on."""

    def __init__(self):
        super().__init__("numpy")
        self.stream = itertools.cycle([1.0, 2.0])

    def __getitem__(self, i):
        return self.images[i] * next(self.stream), i % 3


def test_data_sets_that_cannot_be_put_back_are_not_read(tmp_path):
    data = ReadsStream()
    with pytest.raises(ValueError, match="an iterator at 'stream'"):
        read_panel(DataLoader(data, 3), [0, 1], "", 0)
    assert next(data.stream) == 1.0
    callback = ExplanationLogger(max_images=2)
    trained(tmp_path, Small(), [callback], DataLoader(ReadsStream(), 3, num_workers=0))
    assert any("an iterator at 'stream'" in reason for reason in callback.errors.reasons)


def trained(folder, module, callbacks, val=None):
    train, usual = loaders()
    trainer = trainers(folder, max_epochs=1, limit_train_batches=2)(callbacks)
    trainer.fit(module, train, val or usual)
    return trainer


@pytest.mark.parametrize("kind", DRAWS)
def test_panels_are_equal_in_all_runs_with_random_augmentation(tmp_path, kind):
    panels = []
    for seed in (1, 2):  # data sets that are seeded differently, as unseeded ones are
        callback = ExplanationLogger(max_images=4)
        data = DataLoader(Drawing(kind, seed), 3, num_workers=0)
        trainer = trained(tmp_path / str(seed), Small(), [callback], data)
        panels.append(torch.cat([batch[0] for batch in context_of(trainer, callback).panel.batches]))
    assert torch.equal(panels[0], panels[1])


class Restless(Drawing):
    """Draws from the operating system, which no seed reaches."""

    def __getitem__(self, i):
        return self.images[i] + random.SystemRandom().random(), i % 3


@pytest.mark.parametrize(("data", "differs"), [(Restless, True), (Drawing, False)])
def test_start_up_report_names_panels_that_differ_between_runs(tmp_path, data, differs):
    trained(tmp_path, Small(), [ExplanationLogger(max_images=4)], DataLoader(data("numpy"), 3, num_workers=0))
    lines = [json.loads(line) for path in tmp_path.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    run = next(line for line in lines if line["kind"] == "run")
    assert any("other runs show other pictures" in text for _, text in run["probe"]) == differs
