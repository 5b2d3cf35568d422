"""Log saliency maps, epoch by epoch: overlays of a fixed panel of images and of those with the largest loss."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey, Picked
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explanation_memo import explain_images
from interpretable_training.callbacks.watching.explanations import RANKED, Explained, check_target, joined
from interpretable_training.callbacks.watching.hardest_images import HardestImages
from interpretable_training.callbacks.watching.image_logging import Gallery
from interpretable_training.callbacks.watching.options import (
    Images,
    OnError,
    Stages,
    common_options,
    suggest_options,
)
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.callbacks.watching.session import WatchSession, session_of
from interpretable_training.callbacks.watching.startup_report import Line, probe
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen


class ExplanationLogger(Watcher):
    """Send maps of a fixed panel of images to the loggers, and write them to disk for the report.

    >>> ExplanationLogger(GradCAM("layer4"), max_images=8, target="both").settings()["hardest"]
    4

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        max_images: how many images; by default 16, fewer where epochs are short, see `Watcher`.
        images: which images; see `Watcher`.
        target: the class that is explained: "pred", "label", "both", "least", "topk:K" or a number.
        hardest: number of further images with maps: those with the highest loss of the validation.
        scale: the colors of a map cover its own values ("image"), or the largest of the "run" so far, which shows how
            strong maps are compared with those of other images and epochs.
        table: whether a table of all maps' numbers is sent at the end.
    """

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        max_images: int | None = None,
        images: Images = "panel",
        target: int | str = "pred",
        hardest: int = 4,
        scale: Literal["image", "run"] = "image",
        table: bool = True,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        stages: Stages = ("fit", "test"),
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
        one_of("scale", scale, "image", "run")
        if hardest < 0:
            raise ValueError(f"expected hardest of at least 0, got {hardest}.")
        check_target(target)
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.target, self.table = target, table
        self.hardest = HardestImages(hardest, self.options)
        self.warned = False  # that there are no hardest images
        self.gallery = Gallery(self.methods, scale)

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        settings = {"methods": methods, "target": self.target, "hardest": self.hardest.k, "scale": self.gallery.scale}
        return {**settings, **super().settings()}

    def start_lines(self, session: WatchSession, context: RunContext) -> list[Line]:
        n = self.n + self.hardest.k
        lines, self.budget.estimate = probe(session.trainer, context, self.methods, self.target, n, n)
        return lines

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.hardest.start()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._listen(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._listen(trainer)

    def _listen(self, trainer: L.Trainer) -> None:
        """Read the logits of the next batch."""
        context = session_of(trainer).found_context(self.options)
        if context is None or trainer.sanity_checking or not context.reading.together:
            return
        if context.reading.task.name in RANKED:
            self.hardest.listen(context.network, context.reading.task.name == "regression")

    def after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        self._guard(trainer, lambda: self.hardest.take(trainer, batch))
        super().after_batch(trainer, pl_module, batch)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.hardest.stop()
        super().on_exception(trainer, pl_module, exception)

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> dict[str, Explained]:
        n = self.budget.keep(self.n)
        groups = {"panel": session.explain(context, self.methods, self.target, n)}
        if self.hardest.unavailable and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"ExplanationLogger shows no hardest images: {context.network_name or 'the network'} is not called by "
                "the step, or is compiled as a part of it; pass network= with the part that is called."
            )
        trainer = session.trainer
        if self.hardest.images and (trainer.validating or trainer.testing):
            limited = n < self.n and self.budget.budget is not None
            hardest = self.hardest.images[: n if limited else None]
            images, label = (torch.stack([getattr(image, name) for image in hardest]) for name in ("image", "label"))
            images = images.to(trainer.lightning_module.device)
            picked = Picked(images, label, None, None, {})
            ids = [image.id for image in hardest]
            groups["hardest"] = explain_images(self.methods, context.reading, picked, self.target, ids)
        self.hardest.images = []
        return groups

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        groups = {"panel": joined([part["panel"] for part in parts]).sorted_by_id()}
        hardest = [part["hardest"] for part in parts if "hardest" in part]
        if hardest:
            groups["hardest"] = joined(hardest).largest_losses(self.hardest.k)
        self.gallery.show(session, context, groups, step)

    def finish(self, session: WatchSession) -> None:
        if self.table:
            self.gallery.send_table(session)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "gallery": self.gallery.state_dict()}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.gallery.restore(saved.part("gallery"))
