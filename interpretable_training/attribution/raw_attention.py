"""Raw attention of one block, by default the last.

    S = mean over r of h over heads of A[L][h, r, patches]    (1)
    S = h over heads of a[L][h]                               (2)  for a CA-Stream

A[l]: attention (heads, Q, T) of block l of L, of Q queries to T tokens; attention that pools is a block of its own. r:
the queries that the output depends on: the class token, the learned query of attention that pools, or the patches of a
model that averages them. h: mean, max or min. a[l]: attention over the cells of stage l, softmax of its scores.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .core.attention import attention_of, on_patches, reading_rows, token_grid
from .core.base import Attribution, full
from .core.map_operations import resize
from .core.prepared_model import PreparedModel
from .core.sharded_parameters import as_forward
from .core.targets import Resolved

Heads = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class RawAttention(Attribution):
    """Return the attention of the class token, or of the query that pools, to the cells of the image.

    >>> from interpretable_training.models import TinyViT
    >>> RawAttention()(TinyViT(2, image_size=16), images).shape
    torch.Size([4, 16, 16])

    Every class has the same map, unless the queries are class-specific.

    Args:
        heads: how heads are fused: their "mean", "max" or "min".
        block: index of the block; -1 is the last.
        upsample: to image resolution.
        align_corners: passed to the interpolation that upsamples the map.
        logits: return the scores before the softmax, for models with `forward_with_attention`.
    """

    heads: Heads = "mean"
    block: int = -1
    upsample: bool = True
    align_corners: bool = False
    logits: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        stream = hasattr(prepared.module, "forward_with_attention")
        S = self._of_stream(prepared, images, target) if stream else self._of_tokens(prepared, images, target)
        return resize(S, images.shape[2:], self.align_corners) if self.upsample else S

    def _of_tokens(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        if self.logits:
            raise ValueError(
                f"expected a model with forward_with_attention for logits=True, got {type(prepared.module).__name__}; "
                "pass logits=False."
            )
        matrices, shapes = attention_of(prepared, images, target)
        blocks = [weights for weights in matrices if len(weights) == len(images)]
        if blocks:
            self._check(len(blocks))
        A = blocks[self.block] if blocks else None
        grid = None if A is None else token_grid(prepared, images, A, shapes)
        if A is None or grid is None:
            raise ValueError(
                f"expected a transformer or attention that pools, whose block {self.block} reads the patches of the "
                f"whole image, got {type(prepared.module).__name__} with attention of shapes "
                f"{sorted({tuple(weights.shape) for weights in matrices})}; use a method of layers, such as GradCAM."
            )
        read = reading_rows(prepared, images, target, blocks, self.block, grid.prefix)
        return on_patches(fuse_heads(full(A), self.heads), grid, read)  # (1)

    @torch.no_grad()
    def _of_stream(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        _, attention = stream_of(prepared, images, target)
        self._check(len(attention))
        S = full((attention if self.logits else attention.maps)[self.block])
        return S if S.ndim == 3 else fuse_heads(S, self.heads)  # (2)

    def _check(self, blocks: int) -> None:
        if not -blocks <= self.block < blocks:
            raise ValueError(
                f"expected a block from {-blocks} to {blocks - 1}, the model has {blocks} blocks, got {self.block}."
            )


def stream_of(prepared: PreparedModel, images: Tensor, target: Resolved) -> Any:
    """Return the logits and the attention of a model that pools by attention."""
    forward = as_forward(prepared.module, "forward_with_attention")
    if getattr(prepared.module, "class_specific", False) and isinstance(target, Tensor):
        forward = partial(forward, target=target)
    return replace(prepared, module=forward).run(images)


def fuse_heads(A: Tensor, heads: Heads) -> Tensor:
    """Fuse heads: (B, heads, Q, T) -> (B, Q, T), or (B, heads, h, w) -> (B, h, w)."""
    return A.mean(1) if heads == "mean" else A.amax(1) if heads == "max" else A.amin(1)
