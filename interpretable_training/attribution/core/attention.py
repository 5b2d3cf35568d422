"""Record the attention of a transformer during its forward pass: (B, L, heads, T, T) of L self-attentions.

Fused kernels do not return the attention matrix. Functional calls are intercepted during the forward pass and the
softmax is computed a second time to record it; modules do not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .feature_grids import Grid, find_grid
from .prepared_model import PreparedModel
from .targets import Resolved

SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}


class AttentionRecorder(TorchFunctionMode):
    """Mode that appends every attention matrix (B, heads, T, T) of a forward pass to `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.multi_head_attention_forward:
            need_weights = kwargs.get("need_weights", True)  # `nn.MultiheadAttention` passes it by name
            average = kwargs.get("average_attn_weights", True)
            out, weights = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
            self._keep(weights)
            return out, (weights.mean(-3) if average else weights) if need_weights else None
        if func is F.scaled_dot_product_attention:
            self._keep(attention_weights(*args, **kwargs))
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in SOFTMAX:
            self._keep(out)
        return out

    def _keep(self, weights: Tensor) -> None:
        if weights.ndim == 4 and weights.shape[-1] == weights.shape[-2]:
            self.found.append(weights)


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention matrix that `F.scaled_dot_product_attention` uses for the same arguments."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


@torch.no_grad()
def attention_of(prepared: PreparedModel, images: Tensor, target: Resolved) -> tuple[Tensor, Grid]:
    """Return all self-attentions over one set of tokens, (B, L, heads, T, T), and the grid of the tokens."""
    with AttentionRecorder() as recorder:
        output = prepared.run(images)
    if isinstance(target, Tensor):
        prepared.confirm_in(output, target)  # attention does not depend on the class, but the class must exist
    matrices = [weights for weights in recorder.found if len(weights) == len(images)]
    grid = attention_grid(prepared, images, matrices or recorder.found)
    return torch.stack(matrices, 1), grid


def attention_grid(prepared: PreparedModel, images: Tensor, matrices: Sequence[Tensor]) -> Grid:
    """Return the grid of the tokens in all attention matrices; raise an error if they form none."""
    tokens = matrices[-1].shape[-1] if matrices else 0
    prefixes = [getattr(m, "num_prefix_tokens", None) for m in prepared.module.modules()]
    prefix = next((p for p in prefixes if isinstance(p, int)), None)
    shape, size = (len(images), tokens, 1), images.shape[2:]
    grid = (find_grid(shape, size, prefix) or find_grid(shape, size)) if matrices else None
    if grid is None or {len(weights) for weights in matrices} != {len(images)} or len({w.shape for w in matrices}) > 1:
        shapes = sorted({tuple(weights.shape) for weights in matrices})
        raise ValueError(
            f"expected a transformer whose self-attentions all see the same tokens of the whole image, got "
            f"{type(prepared.module).__name__} with attention of shapes {shapes}; use a method "
            "of layers, such as GradCAM."
        )
    return grid


def on_patches(rows: Tensor, grid: Grid) -> Tensor:
    """Return the attention to each patch, (B, h, w), from attention (B, T, T).

    This is the row of the class token, or the mean of all rows in models without one.
    """
    row = rows[:, 0] if grid.prefix else rows.mean(1)
    return row[:, grid.prefix :].unflatten(1, grid.shape)
