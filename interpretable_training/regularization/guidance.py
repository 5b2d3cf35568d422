"""Explanation guidance: training keeps the evidence of a network inside of a region of each image.

    d   = d/dx sum over i, k of log p_ik                       (1)
    l_i = sum over c, q outside of M_i of d_i[c, q]^2          (2)  "input_gradient"
    l_i = l(S_i, M_i)                                          (3)  "energy", "l1": `map_losses.py`
    L   = L_C + lambda / |G| sum over i in G of l_i            (4)

p_ik: probability of class k for image x_i. M_i: pixels where evidence may lie: in the region, or outside of it where it
is to be avoided. S_i: map of the target. G: guided images, those with a region, of all processes. L_C: loss of a step.

(1), (2): "Right for the right reasons", Ross, Hughes and Doshi-Velez, IJCAI 2017, https://arxiv.org/abs/1703.03717.
(3): Rao et al., ICCV 2023, https://arxiv.org/abs/2303.11932. Differs from the papers: Ross et al. take the sum over all
images; Rao et al. explain one class at random among those of an image, here it is the target.

Batch norm in training mode mixes the images of a batch: d_i is then the effect of x_i on all of their probabilities.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.attribution.core.precision import wide
from interpretable_training.attribution.core.prepared_model import Output, unwrap
from interpretable_training.attribution.core.state import same_state
from interpretable_training.attribution.grad_cam import GradCAM

from .gradients import Criterion, RecordedForward, record_forward, run_eagerly
from .map_losses import LOSSES, MapLoss
from .recorded_maps import class_per_image, layers_of, log_probability_gradients, needs_layers_only, recorded_maps

GuidanceRegion = Literal["auto", "mask", "boxes", "not_here"]
REGIONS = ("auto", "mask", "boxes", "not_here")


class MeanLoss(NamedTuple):
    """Mean of l_i over the guided images of all processes, whose number is n."""

    loss: Tensor | None  # with graph: its gradient, averaged over processes, is that of the mean; None where n is 0
    value: Tensor
    n: int


class Guided(NamedTuple):
    """Losses l_i (n,) of the guided images of a batch, and their number."""

    losses: Tensor
    n: int

    def mean(self) -> MeanLoss:
        """Return the mean; where there are several processes, all of them call this in the same steps."""
        summed = self.losses.detach().sum(dtype=wide(self.losses))
        total, processes = torch.stack([torch.full_like(summed, self.n), summed]), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            processes = dist.get_world_size()
        n = int(total[0])
        return MeanLoss(self.losses.sum() * processes / n if n else None, (total[1] / max(n, 1)).float(), n)  # (4)


@dataclass(frozen=True)
class GuidanceParts:
    """Parts of the loss of a batch; steps without guided images have only `output` and `classification`.

    >>> parts = GuidanceParts(network(images), torch.tensor(2.0), weight=0.5, guidance=torch.tensor(0.4), guided=4)
    >>> parts.total
    tensor(2.2000)

    Attributes:
        output: Output of the model.
        classification: L_C, with graph.
        weight: lambda in this step.
        guidance: Mean of l_i, with graph.
        guided: Number of guided images of this process.
    """

    output: Any
    classification: Tensor
    weight: float = 0.0
    guidance: Tensor | None = None
    guided: int = 0

    @property
    def total(self) -> Tensor:
        """Total loss L, with graph."""
        return self.classification if self.guidance is None else self.classification + self.weight * self.guidance


@dataclass(frozen=True)
class GuidanceLoss:
    """Loss that keeps the evidence of a network inside of a region of each image.

    Replace `loss = criterion(model(images), target)` by a call with the region (B, H, W) of each image. Images with an
    empty region are not guided. In a training of several processes, all of them make the same calls.

    >>> region = torch.zeros(4, 16, 16, dtype=torch.bool)
    >>> region[:3, 4:12, 4:12] = True
    >>> loss, parts = GuidanceLoss("energy", weight=0.5)(network, images, target, region)
    >>> loss.backward()
    >>> parts.guided
    3

    Args:
        loss: "input_gradient" (2), "energy" or "l1" (3), or a function of maps and regions M (B, H, W) to (B,).
        region: Annotation that callbacks read from batches: the "mask", the "boxes", "auto" (the mask if there is one),
            or "not_here", the pixels that maps must avoid: `not_here` or `shortcut_mask`. Calls take "not_here" regions
            as forbidden and all others as allowed.
        method: Differentiable method whose maps are guided in (3). Maps of features and gradients of a layer take no
            forward pass of their own.
        weight: lambda of (4).
        share: Largest share of a batch that is guided, its first images with a region. Losses that need a forward pass
            of their own compute it for these images only; so does "input_gradient" below 1. Batch norm then uses the
            statistics of these images and does not update its running statistics.
        start_step: First step that is guided.
        warmup_steps: Raise the weight linearly over this many steps from then on.
    """

    loss: Literal["input_gradient", "energy", "l1"] | MapLoss = "energy"
    region: GuidanceRegion = "auto"
    method: Attribution = GradCAM()  # noqa: RUF009  frozen
    weight: float = 1.0
    share: float = 1.0
    start_step: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in ("input_gradient", *LOSSES):
            known = ["input_gradient", *LOSSES]
            raise ValueError(f"expected loss to be one of {known} or a function, got {self.loss!r}.")
        if self.region not in REGIONS:
            raise ValueError(f"expected region to be one of {REGIONS}, got {self.region!r}.")
        if not isinstance(self.method, Attribution) or not self.method.differentiable:
            raise ValueError(
                f"expected a method whose maps can be differentiated, got {self.method!r}; pass "
                "GradCAM() or another method of a layer's features and gradients, or Gradient()."
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"expected weight >= 0, got {self.weight}; 0 trains without guidance.")
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share}; pass weight=0 to guide nothing.")
        if self.start_step < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"expected start_step >= 0 and warmup_steps >= 0, got {self.start_step}, {self.warmup_steps}."
            )

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target: Any,
        region: Tensor,
        criterion: Criterion = F.cross_entropy,
        *,
        step: int | None = None,
        scale: float = 1.0,
        output: Output = None,
    ) -> tuple[Tensor, GuidanceParts]:
        """Return the total loss L (4) and its parts.

        Args:
            region: Pixels (B, H, W) where evidence may lie, or where it may not ("not_here"), as booleans.
            criterion: Function of the model's output and the target, a mean over images.
            step: Number of the step from 0 on; needed with `start_step` and `warmup_steps`.
            scale: Factor of the `GradScaler`, which keeps gradients in the range of float16. It changes no result.
            output: Which part of the model's output are the logits: a key, an index or a function.
        """
        weight = self.weight_at(step)
        if not weight:
            result = model(images)
            parts = GuidanceParts(result, criterion(result, target))
        else:
            parts = run_eagerly(self._guided, model, images, target, region, criterion, weight, scale, output)
        return parts.total, parts

    def _guided(
        self,
        model: nn.Module,
        images: Tensor,
        target: Any,
        region: Tensor,
        criterion: Criterion,
        weight: float,
        scale: float,
        output: Output,
    ) -> GuidanceParts:
        """Return the parts of a step with guidance."""
        with self.record(model, images, output) as run:
            result = model(images if run is None else run.leaf(images))
        guided = self.compare(run, model, result, images, target, region, scale, output)
        return GuidanceParts(result, criterion(result, target), weight, guided.mean().loss, guided.n)

    def weight_at(self, step: int | None) -> float:
        """Return lambda in a step; 0 before `start_step`."""
        if step is None:
            if self.start_step or self.warmup_steps:
                raise ValueError(
                    f"expected step=... because of start_step={self.start_step} and warmup_steps={self.warmup_steps}, "
                    "got none; pass step=trainer.global_step."
                )
            return self.weight
        after = step - self.start_step + 1  # number of guided steps
        if after < 1:
            return 0.0
        return self.weight * min(1.0, after / self.warmup_steps) if self.warmup_steps else self.weight

    @contextmanager
    def record(self, model: nn.Module, images: Tensor, output: Output = None) -> Iterator[RecordedForward | None]:
        """Record the forward pass of a step inside the block; yield None where the loss needs a pass of its own.

        Args:
            images: Some images, for methods that choose their layer.
        """
        at: str | list[str]
        if self.loss == "input_gradient":
            at = "input" if self.share == 1 else []
        else:
            at = layers_of(self.method, model, images, output) if needs_layers_only(self.method) else []
        if not at:
            yield None
            return
        with record_forward(model, at, rule="plain") as run:
            yield run

    def compare(
        self,
        run: RecordedForward | None,
        model: nn.Module,
        result: Any,
        images: Tensor,
        target: Any,
        region: Tensor,
        scale: float = 1.0,
        output: Output = None,
    ) -> Guided:
        """Return the losses of the guided images of a batch, from the recorded pass or from one of their own.

        Args:
            run: Pass of the step, from `record`.
            result: What the model returned in it.
        """
        rows = self.rows(region, images)
        if not len(rows):
            return Guided(images.new_zeros(0), 0)
        M = ~region[rows] if self.region == "not_here" else region[rows]
        if self.loss == "input_gradient":
            if run is None:
                d = self._own_gradients(model, images[rows], scale, output)
            else:
                d = log_probability_gradients(run, result, scale, output)[rows]
            return Guided((d.square().sum(1) * ~M).flatten(1).sum(1), len(rows))  # (2)
        target = class_per_image(target, images)
        if run is None:
            S = self._own_maps(model, images, target, rows, output)
        else:
            S = recorded_maps(self.method, run, result, images, target, scale, output)[rows]
        if S.shape != M.shape:
            raise ValueError(
                f"expected maps {tuple(M.shape)} at the resolution of the images, got {tuple(S.shape)} from "
                f"{type(self.method).__name__}; methods upsample by themselves unless upsample=False."
            )
        loss = self.loss if callable(self.loss) else LOSSES[self.loss]
        return Guided(loss(S, M), len(rows))  # (3)

    def rows(self, region: Tensor, images: Tensor) -> Tensor:
        """Return the indices of the images that are guided."""
        wanted = (len(images), *images.shape[2:])
        if region.dtype != torch.bool or tuple(region.shape) != wanted:
            raise ValueError(
                f"expected a region {wanted} of booleans, one per image at its resolution, got "
                f"{tuple(region.shape)} of {region.dtype}; resize masks like their images."
            )
        return region.flatten(1).any(1).nonzero()[:, 0][: math.ceil(self.share * len(images))]

    def _own_gradients(self, model: nn.Module, images: Tensor, scale: float, output: Output) -> Tensor:
        """Return (1) of a part of a batch, in a forward pass that changes no buffer."""
        model = unwrap(model)
        with same_state(model), record_forward(model, rule="plain") as run:
            result = model(run.leaf(images))
        return log_probability_gradients(run, result, scale, output)

    def _own_maps(self, model: nn.Module, images: Tensor, target: Tensor, rows: Tensor, output: Output) -> Tensor:
        """Return the maps of some images in a forward pass that changes no buffer; of the whole batch for share=1."""
        part = slice(None) if self.share == 1 else rows
        with record_forward(model, [], rule="plain") as run, run.inputs_only():
            S = self.method(model, images[part], target[part], output=output, create_graph=True)
        return S[rows] if self.share == 1 else S
