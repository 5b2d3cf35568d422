"""Explanation guidance for any LightningModule; `training.added_loss` describes the hooks."""

from contextlib import nullcontext
from typing import Any, Literal

import lightning as L
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, Picked, describe, pick
from interpretable_training.callbacks.training.added_loss import AddedLoss, Step
from interpretable_training.metrics.core.regions import NoRegionError, pixels
from interpretable_training.regularization.guidance import GuidanceLoss, GuidanceRegion, Guided
from interpretable_training.regularization.map_losses import MapLoss
from interpretable_training.tasks.network import find_network


class ExplanationGuidance(AddedLoss):
    """Add a loss of explanations outside of annotated regions to that of any LightningModule.

    Batches are dicts with `mask` (B, H, W) or `boxes`, as `ShapesDataModule(annotations=True)` makes them; images with
    an empty mask or without boxes are not guided. The module needs automatic optimization. Logged, of the steps that
    are guided: `train/guidance`, the mean loss of guided images, and `train/guided_images`, their share.

    >>> ExplanationGuidance(loss="input_gradient", weight=0.1, share=0.25).guidance.share
    0.25

    Args:
        loss: "input_gradient", "energy", "l1", or a function of maps and allowed pixels (B, H, W) to (B,); see
            `GuidanceLoss`.
        region: Annotation that says where maps may lie: the "mask", the "boxes", or "auto", the mask if there is one;
            or "not_here", pixels that maps must avoid, which batches carry as `not_here` or `shortcut_mask`.
        method: Method whose maps "energy", "l1" and functions get. Its layers are named as in the network.
        weight: Weight of the loss.
        share: Largest share of a batch that is guided.
        start_step: First optimizer step that is guided.
        warmup_steps: Optimizer steps over which the weight rises linearly from then on.
        network: Name of the submodule that maps images to logits; by default found as watching callbacks do.
        output: Which part of the network's output are the logits: a key, an index or a function.
        image_key: Key or index of the images in a batch; by default the usual names.
        label_key: Key or index of the target, whose maps are guided; by default the usual names.
    """

    instead = "call GuidanceLoss in its training_step"

    def __init__(
        self,
        loss: Literal["input_gradient", "energy", "l1"] | MapLoss = "energy",
        region: GuidanceRegion = "auto",
        method: Attribution = GradCAM(),  # noqa: B008  frozen
        weight: float = 1.0,
        share: float = 1.0,
        start_step: int = 0,
        warmup_steps: int = 0,
        network: str | None = None,
        output: Output = None,
        image_key: Key = None,
        label_key: Key = None,
    ) -> None:
        super().__init__(network)
        self.guidance = GuidanceLoss(loss, region, method, weight, share, start_step, warmup_steps)
        self.output, self.image_key, self.label_key = output, image_key, label_key
        self.network_name: str | None = None
        self.annotated, self.checked, self.batches = False, False, "no batch"

    def weight_at(self, step: int) -> float:
        return self.guidance.weight_at(step)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.network_name, self.annotated, self.checked = None, False, self.guidance.weight == 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not (self.checked or self.annotated):
            region = self.region_of(self.read(batch))
            self.annotated = region is not None and bool(region.any())
            self.batches = describe(batch)

    def begin(self, step: Step, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        picked = self.read(step.batch)
        if self.network_name is None:
            self.network_name = find_network(pl_module, picked.images, self.network, self.output, "classification").name
        network = pl_module.get_submodule(self.network_name)
        step.watch([network])
        if self.region_of(picked) is not None:
            step.run = step.stack.enter_context(self.guidance.record(network, picked.images, self.output))

    def term(
        self, step: Step, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor, scale: float
    ) -> Tensor | None:
        assert step.images is not None and step.network is not None  # noqa: PT018  one fact
        picked = self.read(step.batch)
        region = self.region_of(picked)
        guided = Guided(loss.new_zeros(0), 0)
        if region is not None:
            self.refuse_second_call(step, pl_module)
            about = step.output, step.images, picked.target, region, scale, self.output
            with nullcontext() if step.run is not None else trainer.precision_plugin.forward_context():
                guided = self.guidance.compare(step.run, step.network, *about)
        mean = guided.mean()
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        n = len(step.images)
        pl_module.log("train/guided_images", guided.n / n, batch_size=n, **options)
        if mean.n:  # the same in all processes
            pl_module.log("train/guidance", mean.value, prog_bar=True, batch_size=mean.n, **options)
        return mean.loss

    def read(self, batch: Any) -> Picked:
        """Return images, target and annotations of a batch."""
        return pick(batch, self.image_key, self.label_key, strict=True)

    def region_of(self, picked: Picked) -> Tensor | None:
        """Return the region (B, H, W) of each image of a batch; None where the batch has no annotation."""
        size, annotations = (len(picked.images), *picked.images.shape[2:]), picked.rest
        try:
            if self.guidance.region == "not_here":
                avoided = annotations.get("not_here", annotations.get("shortcut_mask"))
                return pixels({"shortcut_mask": avoided}, "shortcut_mask", size, picked.images.device)
            return pixels(annotations, self.guidance.region, size, picked.images.device)
        except NoRegionError:
            return None

    def refuse_second_call(self, step: Step, pl_module: L.LightningModule) -> None:
        """Raise where the features of a layer belong to another call of the network than the output."""
        if step.calls > 1 and step.run is not None and step.run.at != "input":
            raise RuntimeError(
                f"expected training_step of {type(pl_module).__name__} to call {self.network_name or 'forward'} once, "
                f"got {step.calls} calls; {self.instead}."
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.checked:
            return
        self.checked = True
        if not trainer.strategy.reduce_boolean_decision(self.annotated, all=False):
            region = self.guidance.region
            wanted = {"auto": "'mask' or 'boxes'", "not_here": "'not_here' or 'shortcut_mask'"}.get(
                region, repr(region)
            )
            raise ValueError(
                f"expected {wanted} of at least one image in the batches of the first epoch, got none in "
                f"{self.batches}; make batches dicts that carry them, as ShapesDataModule(annotations=True) does, or "
                "pass region=..."
            )
