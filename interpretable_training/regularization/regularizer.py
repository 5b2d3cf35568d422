"""Guided-gradient regularization. Torres, thesis, chapter 4; https://arxiv.org/abs/2404.15024

    L_C = 1/n sum over i of CE(f(x_i), t_i)     (4.1)
    d   = dL_C/dx,  d' = d_G L_C/dx, detached   (4.3), the standard and the guided gradient
    L_R = 1/n sum over i of E(d_i, d'_i)        (4.3)
    L   = L_C + lambda L_R                      (4.4)

x, t: images and target. E: an error of `errors.py`. d_G: guided backpropagation (`attribution.core.activation_gates`).
Both gradients come from one forward pass, and L is differentiated through d. A step costs a forward pass, two backward
passes to the images, and a backward pass through all of it except the guided one: 7 F, where a plain step costs 3 F.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.core.activation_gates import Scope
from interpretable_training.attribution.core.prepared_model import unwrap
from interpretable_training.attribution.core.state import same_state

from .errors import ERRORS, Error, cosine
from .gradients import Criterion, RecordedForward, record_forward, run_eagerly


@dataclass(frozen=True)
class Parts:
    """Parts of the loss of a batch; steps without regularization have only `output` and `classification`.

    >>> parts = Parts(network(images), torch.tensor(2.0), weight=0.5, regularization=torch.tensor(-1.0))
    >>> parts.total
    tensor(1.5000)

    Attributes:
        output: Output of the model.
        classification: L_C, with graph.
        weight: lambda in this step.
        regularization: L_R, with graph.
        similarity: Mean cosine of d and d'.
        norm: Mean norm of d.
        guided_norm: Mean norm of d'.
        gated: Number of guided activations.
    """

    output: Any
    classification: Tensor
    weight: float = 0.0
    regularization: Tensor | None = None
    similarity: Tensor | None = None
    norm: Tensor | None = None
    guided_norm: Tensor | None = None
    gated: int = 0

    @property
    def total(self) -> Tensor:
        """Total loss L, with graph."""
        if self.regularization is None:
            return self.classification
        return self.classification + self.weight * self.regularization  # (4.4)


@dataclass(frozen=True)
class GuidedGradientRegularizer:
    """Loss that aligns the gradient of the images with their guided gradient.

    Replace `loss = criterion(model(images), target)` by a call of the regularizer. With `weight=0` both are equal to
    the bit.

    >>> loss, parts = GuidedGradientRegularizer(weight=7.5e-3)(network, images, target)
    >>> loss.backward()
    >>> parts.similarity.shape, parts.gated
    (torch.Size([]), 1)

    Args:
        error: "cosine", "mae", "mse", "histogram", or a function of both gradients (B, ...) to (B,).
        weight: lambda of (4.4).
        every_n_steps: Regularize one step in this many.
        rescale: Multiply the weight by `every_n_steps`, so that the sum over all steps stays the same.
        fraction: Share of each batch that is regularized, its first images. They take a forward pass of their own, in
            which batch norm uses their statistics and does not update its running statistics.
        at: Differentiate with respect to the "input", or to the output of the layer with this dotted name.
        scope: Guide "all" activations that run, or only registered "modules", as libraries do that replace modules.
        grad_of: Differentiate the "mean" of the losses of a batch, as the thesis does, or their "sum", which makes
            "mae" and "mse" independent of the batch size.
        warmup_steps: Raise the weight linearly over this many steps.
    """

    error: Literal["cosine", "mae", "mse", "histogram"] | Error = "cosine"
    weight: float = 7.5e-3
    every_n_steps: int = 1
    rescale: bool = False
    fraction: float = 1.0
    at: str = "input"
    scope: Scope = "all"
    grad_of: Literal["mean", "sum"] = "mean"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not callable(self.error) and self.error not in ERRORS:
            raise ValueError(f"expected error to be one of {list(ERRORS)} or a function, got {self.error!r}.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"expected weight >= 0, got {self.weight}; 0 trains without regularization.")
        if self.every_n_steps < 1 or self.warmup_steps < 0:
            raise ValueError(
                f"expected every_n_steps >= 1 and warmup_steps >= 0, got {self.every_n_steps}, {self.warmup_steps}."
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"expected fraction in (0, 1], got {self.fraction}; pass weight=0 to regularize nothing.")
        for name, value, choices in (
            ("scope", self.scope, ("all", "modules")),
            ("grad_of", self.grad_of, ("mean", "sum")),
        ):
            if value not in choices:
                raise ValueError(f"expected {name} to be one of {choices}, got {value!r}.")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target: Any,
        criterion: Criterion = F.cross_entropy,
        *,
        step: int | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, Parts]:
        """Return the total loss L (4.4) and its parts.

        Args:
            criterion: Function of the model's output and the target, a mean over images.
            step: Number of the step from 0 on; needed with `every_n_steps` and `warmup_steps`.
            scale: Factor of the `GradScaler`, which keeps gradients in the range of float16. It changes no result.
        """
        weight = self.weight_at(step)
        if not weight:
            output = model(images)
            parts = Parts(output, criterion(output, target))
        else:
            parts = run_eagerly(self._regularized, model, images, target, criterion, weight, scale)
        return parts.total, parts

    def _regularized(
        self, model: nn.Module, images: Tensor, target: Any, criterion: Criterion, weight: float, scale: float
    ) -> Parts:
        """Return the parts of a step with regularization."""
        if self.fraction == 1:
            with record_forward(model, self.at, self.scope) as recorded:
                output = model(recorded.leaf(images))
            return self.compare(recorded, output, criterion(output, target), len(images), weight, scale)
        output = model(images)
        loss = criterion(output, target)
        part = self.compare_part(model, images, target, criterion, weight, scale)
        return replace(part, output=output, classification=loss)

    def weight_at(self, step: int | None) -> float:
        """Return lambda in a step; 0 in steps without regularization."""
        if step is None:
            if self.every_n_steps > 1 or self.warmup_steps:
                raise ValueError(
                    f"expected step=... because of every_n_steps={self.every_n_steps} and warmup_steps="
                    f"{self.warmup_steps}, got none; pass step=trainer.global_step."
                )
            step = 0
        if step % self.every_n_steps:
            return 0.0
        weight = self.weight * (self.every_n_steps if self.rescale else 1)
        return weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else weight

    def compare(
        self, recorded: RecordedForward, output: Any, loss: Tensor, n: int, weight: float, scale: float = 1.0
    ) -> Parts:
        """Return the parts of the loss L_C of n images from their recorded forward pass."""
        scaled = loss if scale == 1 else loss * scale
        factor = (n if self.grad_of == "sum" else 1) / scale
        d2 = recorded.gradient(scaled, guided=True).detach() * factor
        gated = recorded.fired
        d = recorded.gradient(scaled, guided=False, create_graph=True) * factor
        error = self.error if callable(self.error) else ERRORS[self.error]
        with torch.no_grad():
            similarity, norm, guided_norm = -cosine(d, d2).mean(), mean_norm(d), mean_norm(d2)
        return Parts(output, loss, weight, error(d, d2).mean(), similarity, norm, guided_norm, gated)  # (4.3)

    def compare_part(
        self, model: nn.Module, images: Tensor, target: Any, criterion: Criterion, weight: float, scale: float = 1.0
    ) -> Parts:
        """Return the parts of the loss of the first images of a batch, in a forward pass that changes no buffer."""
        model, n = unwrap(model), math.ceil(self.fraction * len(images))
        with same_state(model), record_forward(model, self.at, self.scope) as recorded:
            output = model(recorded.leaf(images[:n]))
        return self.compare(recorded, output, criterion(output, target[:n]), n, weight, scale)


def mean_norm(d: Tensor) -> Tensor:
    """Return the mean Euclidean norm over images."""
    return d.flatten(1).norm(dim=1).mean()
