"""Transformer attribution. Chefer et al., CVPR 2021, https://arxiv.org/abs/2012.09838

    C[l] = I + mean over heads of relu(dy/dA[l] * R[l])    (1)
    S    = (C[L] ... C[1])[CLS, patches]                   (2)
    R[l] = relevance of A[l]                               (3) "lrp"
         = A[l]                                            (4) "attn"

A[l]: attention (heads, T, T) of block l of L. y: logit of the target class. For a model that averages patches, (2) is
the mean of the patches' rows, even if the model has a class token or registers that its head does not read. Relevance
starts with 1 at y and is passed back: by what each positive product w x adds to the output (linear layers), in halves
to the factors of a product, to the terms of a residual sum in proportion to the sizes of their shares, unchanged
through softmax, normalization and activation. (4) is the same authors' later variant with gradients alone, ICCV 2021,
https://arxiv.org/abs/2103.15679
Differs from the authors' code: sums are those of one image, not of the batch.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .core.attention import on_patches, one_grid
from .core.base import Attribution, full
from .core.feature_grids import Grid
from .core.map_operations import resize
from .core.prepared_model import PreparedModel, prepare
from .core.relevance import OpenAttention, divide
from .core.targets import Resolved, Score
from .core.token_shapes import TokenShapes


@dataclass(frozen=True)
class TransformerAttribution(Attribution):
    """Follow the attention that raises the score from the patches to the class token.

    >>> from interpretable_training.models import TinyViT
    >>> TransformerAttribution()(TinyViT(2, image_size=16), images, target).shape
    torch.Size([4, 16, 16])

    Args:
        relevance: R of (1): "lrp" (3) or "attn" (4).
        start_layer: index of the first block that enters (2).
        score: explain the "logit" or the "prob", "logprob", "sigmoid" of the class.
        upsample: to image resolution.
        align_corners: passed to the interpolation that upsamples the map.
    """

    relevance: Literal["lrp", "attn"] = "lrp"
    start_layer: int = 0
    score: Score = "logit"
    upsample: bool = True
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        A, dA, shapes = self._attention(prepared, images, target, lrp=False)
        grid = one_grid(prepared, images, A, shapes)
        if not 0 <= self.start_layer < len(A):
            raise ValueError(f"expected start_layer from 0 to {len(A) - 1}, got {self.start_layer}.")
        R = A
        if self.relevance == "lrp":
            A, s, _ = self._attention(prepared, images, target, lrp=True)
            R = [full(a) * full(slope) for a, slope in zip(A, s)]  # (3)
        T = A[0].shape[-1]
        I = torch.eye(T, dtype=full(A[0]).dtype, device=images.device)  # noqa: E741  the formula's letter
        C = I.expand(len(images), T, T)
        for g, r in list(zip(dA, R))[self.start_layer :]:
            C = (I + (full(g) * full(r)).relu().mean(1)) @ C  # (1), (2)
        S = _read(C, dA[-1], grid)  # (2)
        return resize(S, images.shape[2:], self.align_corners) if self.upsample else S

    def _attention(
        self, prepared: PreparedModel, images: Tensor, target: Resolved, lrp: bool
    ) -> tuple[list[Tensor], list[Tensor], TokenShapes]:
        """Return A of the blocks (B, heads, T, T), the gradients dy/dA, or with `lrp` the relevance divided by A, and
        the shapes of tokens.
        """
        if lrp:  # half precision is too coarse for relevance
            prepared = replace(prepared, autocast=())
            images = prepare(prepared, images)
        with torch.enable_grad():
            with OpenAttention(lrp, len(images)) as mode:
                y = prepared.score(images.detach().requires_grad_(), target, self.score)
            if mode.found and not mode.reached:
                raise RuntimeError(
                    "expected gradients to be on where attention runs, but the model's own forward turns them off "
                    "(no_grad, inference_mode or reentrant checkpointing)."
                )
            attention = mode.found[:]
            if not attention or not y.requires_grad:
                return attention, [torch.zeros_like(A) for A in attention], mode.shapes
            start = divide(torch.ones_like(y), y).detach() if lrp else torch.ones_like(y)
            slopes = torch.autograd.grad(y, attention, start, allow_unused=True)
        A = [a.detach() for a in attention]
        return A, [torch.zeros_like(a) if s is None else s for a, s in zip(A, slopes)], mode.shapes


def _read(C: Tensor, last: Tensor, grid: Grid) -> Tensor:
    """Return the row of C (B, T, T) over the patches: the class token's, or the mean of the patches' if the score reads
    only these.
    """
    if grid.prefix and last.any() and not last[:, :, 0].any():
        return on_patches(C, grid, range(grid.prefix, C.shape[1]))
    return on_patches(C, grid, [0] if grid.prefix else range(C.shape[1]))
