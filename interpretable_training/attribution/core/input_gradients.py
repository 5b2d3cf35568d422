"""Compute the gradient of a score with respect to the images; raise an error where the model turns gradients off."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .activation_gates import Rule, Scope, gates
from .capture import gradients, refuse_no_grad
from .prepared_model import PreparedModel
from .targets import Resolved, Score


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
        fast = mode is None and not prepared.create_graph
        with mode or nullcontext():
            output = prepared.run_fast(x) if fast else prepared.run(x)
            y = prepared.score_in(output, target, score)
        if not y.requires_grad:
            refuse_no_grad_inside(prepared, images)
        return gradients(y, {"x": x}, create_graph=prepared.create_graph)["x"]


def refuse_no_grad_inside(prepared: PreparedModel, images: Tensor) -> None:
    """Raise an error if a part of the model turns gradients off; called if the score has no gradient."""

    # A score without gradient has two causes: the model is constant, or a part of it runs without gradients.
    def hook(module: nn.Module, args: Any) -> None:
        refuse_no_grad(f"the model's {type(module).__name__}")

    handles = [child.register_forward_pre_hook(hook) for child in prepared.module.modules()]
    try:
        prepared.run(images[:1])
    finally:
        for handle in handles:
            handle.remove()
