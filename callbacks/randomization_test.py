"""Test at the end of training whether explanations depend on what the model has learned."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.options import Images, OnError, Stages, common_options, suggest_options
from interpretable_training.callbacks.watching.schedule import ExplanationStep, current_step
from interpretable_training.callbacks.watching.session import WatchSession, session_of
from interpretable_training.metrics.sanity.checks import Check, SanityTable
from interpretable_training.metrics.sanity.parameter_randomization import ParameterRandomization
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen


class RandomizationTest(Watcher):
    """Compare maps with those of the network with random layers; a method with the same maps fails.

    Runs at the end of fit and, where they are set, every so many epochs or steps; on the images of rank zero. The
    network is not written. Call `run` for any other time.

    >>> RandomizationTest(GradCAM("layer4"), max_images=4).settings()["max_images"]
    4

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        max_images: how many images.
        images: which images; see `Watcher`.
        test: which layers become random and when a method passes; by default two steps from the output on.
    """

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        max_images: int = 8,
        images: Images = "panel",
        test: ParameterRandomization | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        stages: Stages = ("fit",),
        on_error: OnError = "warn",
        budget: Budget | float | None = None,
        network: Chosen = None,
        output: Output = None,
        image_key: Key = None,
        label_key: LabelKey = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        task: str | Task = "auto",
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(**common_options(locals()))
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.test = test or ParameterRandomization(stages=2, similarity=("ssim", "spearman_abs"))

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        return {"methods": methods, "test": repr(self.test), **super().settings()}

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> list[Check] | None:
        return self._checks(session, context, self.budget.keep(self.n)) if session.trainer.is_global_zero else None

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        checks = parts[0] if parts else []
        return {f"xai/{c.method}/randomization_{kind}": v for c in checks for kind, v in c.similarity.items()}

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        rows = [
            {name: getattr(check, name) for name in ("method", "similarity", "passed", "rule")} for check in parts[0]
        ]
        session.write("randomization", step, rows=rows)
        rank_zero_info(str(SanityTable(parts[0])))

    def finish(self, session: WatchSession) -> None:
        last = self.schedule.last_step
        if last is None or last[1] != session.trainer.global_step:  # not just run by its schedule
            self.run(session.trainer, session.trainer.lightning_module)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Check]:
        """Run the test now, log its numbers and return them."""
        session, step = session_of(trainer), current_step(trainer)
        context = session.context(self.options, pl_module)
        if context is None:
            return []
        checks = self._checks(session, context, self.n)
        self.draw(session, context, [checks], step)
        session.send(self.values([checks], step), step)
        return checks

    def _checks(self, session: WatchSession, context: RunContext, n: int) -> list[Check]:
        context.require_together("RandomizationTest")
        images = torch.cat([picked.images for _, picked in context.batches(session.trainer, n)])
        return self.test(context.network, self.methods, images, output=context.options.output)
