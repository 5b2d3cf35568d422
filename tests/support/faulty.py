"""What goes wrong on purpose, and callbacks to which it happens."""

from dataclasses import dataclass
from typing import ClassVar

import lightning as L
import torch

from interpretable_training.attribution import Attribution
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
)
from interpretable_training.metrics import AverageDrop
from support.watched import Module, fit


@dataclass(frozen=True)
class Faulty(Attribution):
    """Calls a function of the class in each explanation, which may raise or return what the maps are multiplied by."""

    act: ClassVar = staticmethod(lambda images: 1.0)

    def attribute(self, prepared, images, target):
        return images.abs().mean(1) * type(self).act(images)


def everyone(methods, **options):
    return [
        ExplanationLogger(methods, max_images=3, hardest=1, **options),
        InterpretabilityMetrics(methods, metrics=AverageDrop(), max_images=4, **options),
        ExplanationDrift(methods, max_images=3, **options),
        ExplanationAlarms(methods, max_images=3, alike=0.9, **options),
        RandomizationTest(methods, max_images=2, **options),
    ]


def raises(error):
    def act(images):
        raise error

    return act


class Switch(L.Callback):
    """Does something at the start of an epoch."""

    def __init__(self, epoch, act):
        self.epoch, self.act = epoch, act

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.act(pl_module)


def told(caught, text):
    return [str(w.message) for w in caught if text in str(w.message)]


def trained(module, folder):
    """Whether the weights are those of a training without callbacks."""
    other = Module()
    fit(folder / "plain", [], other)
    return all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values()))
