"""Where the model looks, epoch by epoch: overlays of a fixed panel of images, and of those it is most wrong about."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explained import Look, check_target, joined
from interpretable_training.callbacks.watching.explaining import explain_images, explain_panel
from interpretable_training.callbacks.watching.hardest_images import Worst
from interpretable_training.callbacks.watching.image_logging import Gallery
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.callbacks.watching.startup_report import probe


class ExplanationLogger(Watcher):
    """Shows maps of a fixed panel of images in the project's logger, and keeps them on disk for the report.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        images: which images; see `Watcher`.
        n_images: how many of them.
        target: the class that is explained: "pred", "label", "both", "least", "topk:K" or a number.
        worst: of how many images more, those with the largest loss in the validation, maps are shown.
        scale: the colors of a map cover its own values ("image"), or the largest of the "run" so far, which shows how
            strong maps are beside those of other images and epochs.
        table: whether a table of all maps' numbers is sent at the end.
        **watch: when to look and how to read batches; see `Watcher`.
    """

    def __init__(
        self,
        methods: Methods | None = None,
        images: Any = "panel",
        n_images: int = 16,
        target: str | int = "pred",
        worst: int = 4,
        scale: Literal["image", "run"] = "image",
        table: bool = True,
        **watch: Any,
    ) -> None:
        super().__init__(n_images, images, **watch)
        one_of("scale", scale, "image", "run")
        if worst < 0:
            raise ValueError(f"expected worst of at least 0, got {worst}.")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        check_target(target)
        self.target, self.table = target, table
        self.worst = Worst(worst, self.options)
        self.told_deaf = False
        self.gallery = Gallery(self.methods, scale)

    def settings(self) -> dict[str, Any]:
        told = {"methods": {name: repr(method) for name, method in self.methods.items()}, "target": self.target}
        return {**told, "worst": self.worst.k, "scale": self.gallery.scale, **super().settings()}

    def facts(self, trainer: L.Trainer, scene: RunContext) -> list[tuple[str, str]]:
        return probe(trainer, scene, self.methods, self.target, self.n)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.worst.start()

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.worst.start()

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.listen(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.listen(trainer)

    def listen(self, trainer: L.Trainer) -> None:
        """Hear what the network says of the next batch."""
        scene = self.scenery.scene
        if scene is not None and not trainer.sanity_checking:
            self.worst.listen(scene.network)

    def after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        self.guard(trainer, lambda: self.worst.take(trainer, batch))
        super().after_batch(trainer, pl_module, batch)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.worst.stop()
        super().on_exception(trainer, pl_module, exception)

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        if scene is None:
            return None
        parts = {"panel": explain_panel(trainer, scene, self.methods, self.target, self.thrift.keep(self.n))}
        if self.worst.deaf and not self.told_deaf:
            self.told_deaf = True
            rank_zero_warn(
                f"ExplanationLogger shows no worst images: {scene.network_name or 'the network'} is not called by the "
                "step, or is compiled as a part of it; pass network= with the part that is called."
            )
        bad = self.worst.kept if trainer.validating or trainer.testing else []
        if bad:
            images, label = (torch.stack([getattr(b, name) for b in bad]) for name in ("image", "label"))
            images = images.to(trainer.lightning_module.device)
            options = scene.options.output, scene.multilabel, [b.id for b in bad]
            parts["worst"] = explain_images(self.methods, scene.network, images, label, self.target, *options)
        self.worst.kept = []
        return Look(parts)

    def show(self, trainer: L.Trainer, parts: list[Any], moment: Moment) -> None:
        scene = self.scenery.scene
        assert scene is not None  # rank zero has the first image
        panel = joined([part.found["panel"] for part in parts]).sorted_by_id()
        worst = [part.found["worst"] for part in parts if "worst" in part.found]
        groups = {"panel": panel} | ({"worst": joined(worst).largest_losses(self.worst.k)} if worst else {})
        self.gallery.show(trainer, self.records, scene, groups, moment)

    def finish(self, trainer: L.Trainer) -> None:
        if self.table:
            self.gallery.send_table(trainer, self.records)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "gallery": self.gallery.state_dict()}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.gallery.restore(saved.part("gallery"))
