"""Test at the end of training whether explanations depend on what the model has learned."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.options import Images, OnError, common_options, suggest_options
from interpretable_training.callbacks.watching.schedule import ExplanationStep, current_step
from interpretable_training.callbacks.watching.session import WatchSession, session_of
from interpretable_training.metrics.sanity.checks import Check, SanityTable
from interpretable_training.metrics.sanity.parameter_randomization import ParameterRandomization


class RandomizationTest(Watcher):
    """Compare maps with those of the network with random layers; a method with the same maps fails.

    Runs once, at the end of fit, on the images of rank zero; the network is not written. Call `run` for any other time.

    >>> RandomizationTest(GradCAM("layer4"), max_images=4).settings()["max_images"]
    4

    `Watcher` describes the options from `on_error` on.

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
        on_error: OnError = "warn",
        network: str | None = None,
        output: Output = None,
        image_key: int | str | None = None,
        label_key: int | str | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_epochs=None, stages=("fit",), **common_options(locals()))
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.test = test or ParameterRandomization(stages=2, similarity=("ssim", "spearman_abs"))

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        return {"methods": methods, "max_images": self.n, "test": repr(self.test)}

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> None:
        return None

    def finish(self, session: WatchSession) -> None:
        self.run(session.trainer, session.trainer.lightning_module)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Check]:
        """Run the test now, log its numbers and return them."""
        session = session_of(trainer)
        context = session.context(self.options, pl_module)
        if context is None:
            return []
        images = torch.cat([picked.images for _, picked in context.batches(trainer)])
        checks = self.test(context.network, self.methods, images, output=context.options.output)
        rows = [{"method": c.method, "similarity": c.similarity, "passed": c.passed, "rule": c.rule} for c in checks]
        session.write("randomization", current_step(trainer), rows=rows)
        values = {f"xai/{c.method}/randomization_{kind}": v for c in checks for kind, v in c.similarity.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=logger_adapters.logged_step(trainer))
        rank_zero_info(str(SanityTable(checks)))
        return checks
