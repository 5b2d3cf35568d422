"""Every callback that watches, set to look as often and as hard as it can."""

import lightning as L

from interpretable_training.attribution import GradCAM, LayerCAM, SmoothGrad, explain
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
    ShortcutFinder,
    TrainingCurves,
)
from interpretable_training.metrics import AverageDrop, Insertion, MaxSensitivity

METHODS = {"gradcam": GradCAM(), "layercam": LayerCAM(), "smoothgrad": SmoothGrad(n=2)}  # the last one draws numbers


class Explains(L.Callback):
    """What somebody writes within ten lines: explains the batch at hand, wherever there is one."""

    def __init__(self):
        self.maps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.maps += len(explain(METHODS, pl_module, batch[0]))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.maps += len(explain(METHODS, pl_module, batch[0], batch[1]))

    on_test_batch_end = on_validation_batch_end

    def on_fit_end(self, trainer, pl_module):
        assert self.maps > 0


METRICS = [AverageDrop(), Insertion(steps=3, ties="random"), MaxSensitivity(n=1)]
EVERYWHERE = {"stages": ("fit", "validate", "test"), "on_error": "raise"}
OFTEN = {"methods": METHODS, "every_n_steps": 4, **EVERYWHERE}
WATCHING = {
    "Explains": Explains,
    "TrainingCurves": TrainingCurves,
    "ExplanationLogger": lambda: ExplanationLogger(METHODS, max_images=4, hardest=2, target="both", **EVERYWHERE),
    "ExplanationLogger by steps": lambda: ExplanationLogger(max_images=2, target="topk:2", scale="run", **OFTEN),
    "InterpretabilityMetrics": lambda: InterpretabilityMetrics(metrics=METRICS, max_images=4, controls=True, **OFTEN),
    "ExplanationDrift": lambda: ExplanationDrift(max_images=4, monitor="val/loss", mode="min", **OFTEN),
    "ExplanationAlarms": lambda: ExplanationAlarms(max_images=4, alike=-1.0, border=0.0, drift=0.0, **OFTEN),
    "ShortcutFinder": lambda: ShortcutFinder(max_images=4, every_n_epochs=1, **OFTEN),
    "RandomizationTest": lambda: RandomizationTest(METHODS, max_images=4, on_error="raise"),
}
