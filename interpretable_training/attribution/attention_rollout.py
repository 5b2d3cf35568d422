"""Attention rollout. Abnar and Zuidema, ACL 2020, https://arxiv.org/abs/2005.00928

    B[l] = h over heads of A[l] + I, rows divided by their sums    (1)
    R    = B[L] ... B[1]                                           (2)
    S    = R[CLS, patches]                                         (3)

A[l]: attention (heads, T, T) of block l of L. I: identity. h: mean, max or min. For a model whose output depends on no
class token, (3) is the mean of the patches' rows. Attention that pools is no such block: such models are refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.attention import attention_of, on_patches, one_grid, reading_rows
from .core.base import Attribution, full
from .core.map_operations import resize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved
from .raw_attention import Heads, fuse_heads


@dataclass(frozen=True)
class AttentionRollout(Attribution):
    """Follow attention from the patches to the class token through all blocks; every class has the same map.

    >>> from interpretable_training.models import TinyViT
    >>> AttentionRollout()(TinyViT(2, image_size=16), images).shape
    torch.Size([4, 16, 16])

    Args:
        heads: how heads are fused: their "mean", "max" or "min".
        discard_ratio: share of the smallest entries of each block's matrix that is set to zero before (1).
        start_layer: index of the first block that enters (2).
        upsample: to image resolution.
        align_corners: passed to the interpolation that upsamples the map.
    """

    heads: Heads = "mean"
    discard_ratio: float = 0.0
    start_layer: int = 0
    upsample: bool = True
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        A, shapes = attention_of(prepared, images, target)
        grid = one_grid(prepared, images, A, shapes)
        if not 0 <= self.start_layer < len(A):
            raise ValueError(f"expected start_layer from 0 to {len(A) - 1}, got {self.start_layer}.")
        T = A[0].shape[-1]
        I = torch.eye(T, dtype=full(A[0]).dtype, device=images.device)  # noqa: E741  the formula's letter
        R = I.expand(len(images), T, T)
        for A_l in A[self.start_layer :]:
            B = self._discard(fuse_heads(full(A_l), self.heads)) + I
            R = B / B.sum(-1, keepdim=True) @ R  # (1), (2)
        S = on_patches(R, grid, reading_rows(prepared, images, target, A, -1, grid.prefix))  # (3)
        return resize(S, images.shape[2:], self.align_corners) if self.upsample else S

    def _discard(self, A: Tensor) -> Tensor:
        count = int(A[0].numel() * self.discard_ratio)
        if count == 0:
            return A
        flat = A.flatten(1)
        smallest = flat.topk(count, 1, largest=False).indices
        return flat.scatter(1, smallest, 0).view_as(A)
