"""Log values and warnings of training with guided gradients; for LightningModules and callbacks."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from .regularizer import Parts

PINNED = 1 - 1e-4  # mean similarity above which the regularizer has no effect


def warn_if_compiled(module: L.LightningModule) -> None:
    """Warn where the whole module was compiled; compiled parts are seen when they run."""
    if module._compiler_ctx is not None:
        rank_zero_warn(
            f"{type(module).__name__} is compiled, and compiled modules cannot be differentiated twice: "
            "regularized steps run eagerly"
        )


def grad_scale(trainer: L.Trainer | None) -> float:
    """Return the factor by which the trainer multiplies losses before it differentiates them, in float16."""
    scaler = None if trainer is None else getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def log_parts(module: L.LightningModule, parts: Parts, batch_size: int) -> None:
    """Log the parts of a training loss, if it was regularized."""
    if parts.regularization is None:
        return
    options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": batch_size, "sync_dist": True}
    module.log("train/regularization", parts.regularization, **options)
    module.log("train/total_loss", parts.total, **options)
    log_similarity(module, "train", parts.similarity, parts.norm, parts.guided_norm, batch_size)


def log_similarity(
    module: L.LightningModule, split: str, similarity: Any, norm: Any, guided_norm: Any, batch_size: int
) -> None:
    """Log how alike the two gradients are, and how long."""
    options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": batch_size, "sync_dist": True}
    module.log(f"{split}/similarity", similarity, prog_bar=True, **options)
    module.log_dict({f"{split}/gradient_norm": norm, f"{split}/guided_gradient_norm": guided_norm}, **options)


def report_gated(network: nn.Module, parts: Parts) -> None:
    """Log the number of activations that the regularizer guides."""
    rank_zero_info(f"{parts.gated} activations of {type(network).__name__} are guided")


def warn_of_collapse(trainer: L.Trainer) -> None:
    """Warn where the similarity of the training epoch shows that the regularizer has no effect any more."""
    similarity = trainer.callback_metrics.get("train/similarity")
    if similarity is None:
        return
    if not similarity.isfinite():
        rank_zero_warn(
            "expected a finite train/similarity, got nan: the gradients overflow or the training diverged. Train in "
            "bf16-mixed or 32-true, lower the learning rate or the weight, or clip gradients."
        )
    elif similarity > PINNED:
        rank_zero_warn(
            f"expected train/similarity below 1, got {float(similarity):.6f}: the gradient equals the guided one, so "
            "that there is nothing left to teach. Lower the weight, or pass an earlier layer as `at` if few of the "
            "activations lie behind this one."
        )
