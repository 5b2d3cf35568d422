"""Saliency by the gradient. Simonyan et al., ICLR-W 2014, https://arxiv.org/abs/1312.6034

    g = dy/dx                            (1)
    S = max over channels of |g|         (2)

x: image (C, H, W). y: logit of the target class.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .core.activation_gates import Rule, Scope, gates
from .core.base import Attribution
from .core.capture import gradients, refuse_no_grad
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score

Reduce = Literal["max_abs", "abs_sum", "l2", "signed_sum", "abs_of_sum", "none"]


@dataclass(frozen=True)
class Gradient(Attribution):
    """Reduce the gradient of the score with respect to the image to one value per pixel.

    >>> Gradient()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        reduce: of the channels: "max_abs" (2), "abs_sum" (sum of |g|), "l2", "signed_sum", "abs_of_sum", or "none" for
            the volume (B, C, H, W).
        score: explain the "logit" or the "prob", "logprob", "sigmoid", "loss" of the class.
    """

    reduce: Reduce = "max_abs"
    score: Score = "logit"

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return reduce_channels(input_gradient(prepared, images, target, self.score), self.reduce)


def input_gradient(
    prepared: PreparedModel,
    images: Tensor,
    target: Resolved,
    score: Score = "logit",
    rule: Rule = "plain",
    scope: Scope = "all",
) -> Tensor:
    """Return the gradient of the score with respect to the images, (B, C, ...)."""
    with torch.enable_grad(), gates(rule, scope, prepared.module) as mode:
        x = images.detach().requires_grad_()
        with mode or nullcontext():
            y = prepared.score(x, target, score)
        if not y.requires_grad:
            refuse_hidden(prepared, images)
        return gradients(y, {"x": x}, create_graph=prepared.create_graph)["x"]  # (1)


def refuse_hidden(prepared: PreparedModel, images: Tensor) -> None:
    """Raise an error if a part of the model turns gradients off; called if the score depends on no input."""

    # A score without gradient has two causes: the model is constant, or a part of it runs without gradients.
    def hook(module: nn.Module, args: Any) -> None:
        refuse_no_grad(f"the model's {type(module).__name__}")

    handles = [child.register_forward_pre_hook(hook) for child in prepared.module.modules()]
    try:
        prepared.run(images[:1])
    finally:
        for handle in handles:
            handle.remove()


def reduce_channels(volume: Tensor, reduce: Reduce) -> Tensor:
    """Return the map (B, ...) of a volume (B, C, ...)."""
    if reduce == "none":
        return volume
    if reduce == "max_abs":
        return volume.abs().amax(1)  # (2)
    if reduce == "abs_sum":
        return volume.abs().sum(1)
    if reduce == "l2":
        return volume.square().sum(1).sqrt()
    return volume.sum(1) if reduce == "signed_sum" else volume.sum(1).abs()
