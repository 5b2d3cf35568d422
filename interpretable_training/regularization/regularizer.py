"""Guided-gradient regularization. Torres, thesis, chapter 4; https://arxiv.org/abs/2404.15024

    L_C = 1/n sum over i of CE(f(x_i), t_i)     (4.1)
    d   = dL_C/dx,  d' = d_G L_C/dx, detached   (4.3), the standard and the guided gradient
    L_R = 1/n sum over i of E(d_i, d'_i)        (4.3)
    L   = L_C + lambda L_R                      (4.4)

x, t: images and target. E: an error of `errors.py`. d_G: guided backpropagation (`attribution.rules`). Both gradients
come from one forward pass, and L is differentiated through d. A step so costs a forward pass, two passes back to the
images, and a backward pass through all of it but the guided one: 7 forward passes where a plain step takes 3.
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
from .gradients import Criterion, Run, record, run_eagerly


@dataclass(frozen=True)
class Parts:
    """What the loss of a batch is made of; in a step without regularization only `output` and `classification`.

    output: of the model. classification: L_C, and regularization: L_R, with graph. weight: lambda in this step.
    similarity: mean cosine of d and d'. norm, guided_norm: their mean norms. gated: number of guided activations.
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
        """L."""
        if self.regularization is None:
            return self.classification
        return self.classification + self.weight * self.regularization  # (4.4)


@dataclass(frozen=True)
class GuidedGradientRegularizer:
    """Pulls the gradient of the images towards their guided gradient.

    `loss, parts = regularizer(model, images, target, criterion)` stands where `loss = criterion(model(images), target)`
    stood. With `weight=0` both are the same, to the bit.

    Args:
        error: "cosine", "mae", "mse", "histogram", or a function of both gradients (B, ...) to (B,).
        weight: lambda of (4.4).
        every_n_steps: regularize one step in so many.
        rescale: multiply the weight by `every_n_steps`, so that the sum over the steps stays.
        fraction: share of each batch that is regularized, its first images: they take a second forward pass of their
            own, in which batch norm uses their statistics and leaves the running ones as they are.
        at: differentiate with respect to the "input", or to the output of the layer with this dotted name.
        scope: guide "all" activations that run, or only those of registered "modules", as libraries that replace
            modules do.
        grad_of: differentiate the "mean" of the losses of a batch, as the thesis does, or their "sum", which makes
            "mae" and "mse" independent of the size of the batch.
        warmup_steps: raise the weight linearly over so many steps.
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
        """The total loss L (4.4) and its parts.

        Args:
            criterion: Function of what the model returns and the target, a mean over images.
            step: Number of the step from 0 on; needed with `every_n_steps` and `warmup_steps`.
            scale: Factor that keeps gradients in range, that of the `GradScaler` in float16. It changes no result.
        """
        weight = self.weight_at(step)
        if not weight:
            output = model(images)
            parts = Parts(output, criterion(output, target))
        else:
            parts = run_eagerly(self.regularized, model, images, target, criterion, weight, scale)
        return parts.total, parts

    def regularized(
        self, model: nn.Module, images: Tensor, target: Any, criterion: Criterion, weight: float, scale: float
    ) -> Parts:
        """The parts of a step whose weight is not 0."""
        if self.fraction == 1:
            with record(model, self.at, self.scope) as run:
                output = model(run.leaf(images))
            return self.compare(run, output, criterion(output, target), len(images), weight, scale)
        output = model(images)
        loss = criterion(output, target)
        part = self.compare_part(model, images, target, criterion, weight, scale)
        return replace(part, output=output, classification=loss)

    def weight_at(self, step: int | None) -> float:
        """lambda in a step; 0 in those that are not regularized."""
        if step is None:
            if self.every_n_steps > 1 or self.warmup_steps:
                raise ValueError(
                    f"expected step=..., which every_n_steps={self.every_n_steps} and warmup_steps={self.warmup_steps} "
                    "count, got none; pass trainer.global_step."
                )
            step = 0
        if step % self.every_n_steps:
            return 0.0
        weight = self.weight * (self.every_n_steps if self.rescale else 1)
        return weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else weight

    def compare(self, run: Run, output: Any, loss: Tensor, n: int, weight: float, scale: float = 1.0) -> Parts:
        """The parts of the loss L_C of n images whose forward pass was recorded."""
        scaled = loss if scale == 1 else loss * scale
        factor = (n if self.grad_of == "sum" else 1) / scale
        d2 = run.gradient(scaled, guided=True).detach() * factor
        gated = run.gates.fired
        d = run.gradient(scaled, guided=False, create_graph=True) * factor
        error = self.error if callable(self.error) else ERRORS[self.error]
        with torch.no_grad():
            similarity, norm, guided_norm = -cosine(d, d2).mean(), mean_norm(d), mean_norm(d2)
        return Parts(output, loss, weight, error(d, d2).mean(), similarity, norm, guided_norm, gated)  # (4.3)

    def compare_part(
        self, model: nn.Module, images: Tensor, target: Any, criterion: Criterion, weight: float, scale: float = 1.0
    ) -> Parts:
        """The parts of the loss of the first images of a batch, in a forward pass that leaves no trace in buffers."""
        model, n = unwrap(model), math.ceil(self.fraction * len(images))
        with same_state(model), record(model, self.at, self.scope) as run:
            output = model(run.leaf(images[:n]))
        return self.compare(run, output, criterion(output, target[:n]), n, weight, scale)


def mean_norm(d: Tensor) -> Tensor:
    """Mean over images of the Euclidean norm."""
    return d.flatten(1).norm(dim=1).mean()
