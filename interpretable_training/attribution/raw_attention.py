"""Raw attention of the last block.

    S = h over heads of A[L][h, CLS, patches]    (1)

A[l]: attention (heads, T, T) of block l of L. h: mean, max or min. Without a class token, the mean of all rows.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .attention import attention_of, on_patches
from .base import Attribution, full
from .maps import resize
from .observe import Observed
from .targets import Resolved

Heads = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class RawAttention(Attribution):
    """What the class token looks at, whatever the class.

    Args:
        heads: how the heads become one.
        block: which block; -1 is the last.
        upsample: to image resolution.
        align_corners: how upsampling places the corners.
    """

    heads: Heads = "mean"
    block: int = -1
    upsample: bool = True
    align_corners: bool = False

    def attribute(self, observed: Observed, images: Tensor, target: Resolved) -> Tensor:
        A, grid = attention_of(observed, images)
        if not -A.shape[1] <= self.block < A.shape[1]:
            raise ValueError(f"expected one of {A.shape[1]} blocks, the last is -1, got block {self.block}.")
        S = on_patches(fuse_heads(full(A[:, self.block]), self.heads), grid)  # (1)
        return resize(S, images.shape[2:], self.align_corners) if self.upsample else S


def fuse_heads(A: Tensor, heads: Heads) -> Tensor:
    """(B, heads, T, T) -> (B, T, T)."""
    return A.mean(1) if heads == "mean" else A.amax(1) if heads == "max" else A.amin(1)
