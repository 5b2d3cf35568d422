"""Whether explanations depend on what the model has learned, asked when training ends."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.schedule import Moment, this_moment
from interpretable_training.metrics.sanity.checks import Check, SanityTable
from interpretable_training.metrics.sanity.parameter_randomization import ParameterRandomization


class RandomizationTest(Watcher):
    """Compares maps with those of the network with random layers; a method whose maps stay the same fails.

    Runs once, at the end of fit, on the images of rank zero; the network is not written. Call `run` for any other time.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        images: which images; see `Watcher`.
        n_images: how many of them.
        test: which layers become random and when a method passes; by default two steps from the output on.
        **watch: how to read batches; see `Watcher`.
    """

    def __init__(
        self,
        methods: Methods | None = None,
        images: Any = "panel",
        n_images: int = 8,
        test: ParameterRandomization | None = None,
        **watch: Any,
    ) -> None:
        super().__init__(n_images, images, every_n_epochs=None, stages=("fit",), **watch)
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.test = test or ParameterRandomization(stages=2, similarity=("ssim", "spearman_abs"))

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        return {"methods": methods, "images": self.n, "test": repr(self.test)}

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        return None

    def finish(self, trainer: L.Trainer) -> None:
        self.run(trainer, trainer.lightning_module)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Check]:
        """Do the test now, and log what came out."""
        scene = self.scenery.find(trainer, pl_module)
        if scene is None:
            return []
        images = torch.cat([picked.images for _, picked in scene.batches(trainer)])
        checks = self.test(scene.network, self.methods, images, output=scene.options.output)
        rows = [{"method": c.method, "similarity": c.similarity, "passed": c.passed, "rule": c.rule} for c in checks]
        self.records.write(trainer, "randomization", this_moment(trainer), rows=rows)
        values = {f"xai/{c.method}/randomization_{kind}": v for c in checks for kind, v in c.similarity.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=logger_adapters.logged_step(trainer))
        rank_zero_info(str(SanityTable(checks)))
        return checks
