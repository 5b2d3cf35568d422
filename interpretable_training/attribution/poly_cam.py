"""Poly-CAM. Englebert et al., ICPR 2022, https://arxiv.org/abs/2204.13359

    H[l, k] = up(q(A[l, k])), q(v) = (v - low v) / high v in [0, 1]             (1)
    w[l, k] = p(H[l, k] * x)                                                    (2) "+"
            = relu(p(x) - p((1 - H[l, k]) * x))                                 (3) "-"
            = relu(p(H[l, k] * x) + p(x) - p((1 - H[l, k]) * x))                (4) "+-"
    M[l]    = relu(sum over k of w[l, k] A[l, k])                               (5)
    P[L]    = M[L], P[l] = relu(M[l] / up(down(M[l])) * up(P[l + 1]))           (6)
    S       = up(q(P[1]))                                                       (7)

A[l]: activations of layer l, fine to coarse. low, high: the percentiles 0.1 and 99.9 over the cells of a channel. p:
probability of the class. x: image. down: to the size of P[l + 1]; up: to the image's size, in (6) to that of M[l].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .core.auto_layer import scale_layers
from .core.base import Attribution, full
from .core.batching import in_chunks
from .core.capture import capture
from .core.map_operations import mask_images, resize
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Score, Target, take
from .expected_grad_cam import one_class

TINY, OUTLIERS = 1e-12, 0.001


@dataclass(frozen=True)
class PolyCAM(Attribution):
    """Weight the channels of several layers by scores of masked images, and refine coarse maps by finer ones.

    >>> PolyCAM()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        variant: of the weights: "+" (2), "-" (3) or "+-" (4).
        layers: "auto", the last layer of each grid size, or names from fine to coarse.
        lnorm: divide by the local mean in (6).
        score: p of (2) to (4); see `Gradient`.
        mean: of the images' normalization; with `std`, masked pixels become black instead of the mean color.
        std: see `mean`.
        align_corners: passed to the interpolation that upsamples the map.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    variant: Literal["+", "-", "+-"] = "+-"
    layers: str | Sequence[str] = "auto"
    lnorm: bool = True
    score: Score = "prob"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    align_corners: bool = False
    chunk_size: int | None = None

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return list(self._stages(prepared, images, target).values())[-1]

    def stages(
        self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None
    ) -> dict[str, Tensor]:
        """Return layer -> up(q(P[l])), (B, H, W), from coarse to fine; the last one is the map."""
        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            return self._stages(prepared, images, one_class(prepared, images, target))

    def _names(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> list[str]:
        if self.layers == "auto":
            names = [c.name for c in scale_layers(prepared, images, target)]
            if not names:
                raise ValueError(
                    f"expected a layer with a grid as output that reaches the score, got none in "
                    f"{type(prepared.module).__name__}; pass layers= with names of layers."
                )
            return names
        names = [self.layers] if isinstance(self.layers, str) else list(self.layers)
        if not names:
            raise ValueError("expected 'auto' or at least one name of a layer, got an empty list.")
        return names

    @torch.no_grad()
    def _stages(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> dict[str, Tensor]:
        names = self._names(prepared, images, target)
        captured = capture(prepared, images, names, target, gradient=False)
        cells = {name: math.prod(captured.A[name].shape[2:]) for name in names}
        if list(cells.values()) != sorted(cells.values(), reverse=True):
            raise ValueError(f"expected layers from fine to coarse, got these numbers of cells: {cells}; reorder them.")
        p0 = full(prepared.score_in(captured.output, target, self.score))
        stages: dict[str, Tensor] = {}
        P: Tensor | None = None
        for name in reversed(names):
            A = full(captured.A[name])
            w = self._weights(prepared, images, target, _scale_by_percentiles(A, 2), p0)
            M = torch.einsum("bk,bk...->b...", w, A).relu()  # (5)
            P = M if P is None else self._refine(M, P)
            stages[name] = resize(_scale_by_percentiles(P, 1), images.shape[2:], self.align_corners)  # (7)
        return stages

    def _refine(self, M: Tensor, P: Tensor) -> Tensor:
        size = M.shape[1:]
        if self.lnorm:
            local = resize(resize(M, P.shape[1:], self.align_corners), size, self.align_corners)
            M = M / local.clamp(min=TINY)
        return (M * resize(P, size, self.align_corners)).relu()  # (6)

    def _weights(self, prepared: PreparedModel, images: Tensor, target: Resolved, q: Tensor, p0: Tensor) -> Tensor:
        """Return w of one layer (B, K) for its normalized channels `q` (B, K, *spatial)."""
        B, K = q.shape[:2]
        w = q.new_zeros(B * K)

        def score(rows: slice) -> None:
            pair = torch.arange(rows.start, rows.stop, device=images.device)
            i, k = pair // K, pair % K
            H, part = resize(q[i, k], images.shape[2:], self.align_corners), take(target, i)  # (1)

            def p(mask: Tensor) -> Tensor:
                output = prepared.run_fast(mask_images(images[i], mask, self.mean, self.std))
                return full(prepared.score_in(output, part, self.score)).to(w)

            if self.variant == "+":
                w[rows] = p(H)  # (2)
            elif self.variant == "-":
                w[rows] = (p0[i] - p(1 - H)).relu()  # (3)
            else:
                w[rows] = (p(H) + p0[i] - p(1 - H)).relu()  # (4)

        in_chunks(score, B * K, self.chunk_size, images)
        return w.view(B, K)


def _scale_by_percentiles(v: Tensor, leading: int) -> Tensor:
    """Return q of tensors with cells in the dimensions after the first `leading` ones."""
    flat = v.flatten(leading)
    low, high = _percentile(flat, OUTLIERS), _percentile(flat, 1 - OUTLIERS)
    return ((flat - low) / high.clamp(min=TINY)).clamp(0, 1).view_as(v)  # (1)


def _percentile(flat: Tensor, share: float) -> Tensor:
    # `torch.quantile` takes no more than 16 million values.
    at = share * (flat.shape[-1] - 1)
    below = math.floor(at)
    above = min(below + 1, flat.shape[-1] - 1)
    first, second = (flat.kthvalue(k + 1, keepdim=True).values for k in (below, above))
    return torch.lerp(first, second, at - below)
