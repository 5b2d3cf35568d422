"""Score-CAM. Wang et al., CVPR-W 2020, https://arxiv.org/abs/1910.01279

    M[k] = n(up(A[k]))                                           (1)
    u[k] = y(M[k] * x) - y(x[b])                                 (2)
    w    = softmax over k of u                                   (3)
    S    = relu(sum over k of w[k] A[k])                         (4)

A: activations of `layer`. n: range normalization. y: logit. x: image. x[b]: the image masked everywhere; its score does
not change (3) and is computed only for `weights="increase"`.
Differs from the paper: channels that are constant on an image are left out of (3); `skip_constant=False` keeps them.
The authors' code uses `score="prob", weights="raw"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .core.base import GradientCAM, full
from .core.batching import in_chunks
from .core.capture import capture
from .core.map_operations import degenerate, mask_images, normalize, resize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, take


@dataclass(frozen=True)
class ScoreCAM(GradientCAM):
    """Weight the channels of a layer by the score of the image seen through each of them.

    >>> ScoreCAM()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        weights: "softmax" (3), "raw": y(M[k] * x), "increase": u[k].
        skip_constant: leave out channels that are constant on the image; they need no pass.
        mean: of the images' normalization; with `std`, masked pixels become black instead of the mean color.
        std: see `mean`.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    weights: Literal["softmax", "raw", "increase"] = "softmax"
    skip_constant: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    chunk_size: int | None = None

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        A = full(capture(prepared, images, [layer], target, gradient=False).A[layer])
        w = self._weights(self._scores(prepared, images, target, A), prepared, images, target)
        return torch.einsum("bk,bk...->b...", w.to(A.dtype), A)  # (4)

    @torch.no_grad()
    def _scores(self, prepared: PreparedModel, images: Tensor, target: Resolved, A: Tensor) -> Tensor:
        """Return y(M[k] * x), (B, K); minus infinity for the channels that are left out."""
        constant = degenerate(A.flatten(0, 1)).view(A.shape[:2])
        image, channel = (~constant if self.skip_constant else torch.ones_like(constant)).nonzero(as_tuple=True)
        y = A.new_full(A.shape[:2], -torch.inf)

        def score(rows: slice) -> None:
            i, k = image[rows], channel[rows]
            M = normalize(resize(A[i, k], images.shape[2:], self.align_corners))  # (1)
            output = prepared.run_fast(mask_images(images[i], M, self.mean, self.std))
            y[i, k] = full(prepared.score_in(output, take(target, i), self.score)).to(y)

        in_chunks(score, len(image), self.chunk_size, images)
        return y

    @torch.no_grad()
    def _weights(self, y: Tensor, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        live = y != -torch.inf
        if self.weights == "softmax":
            return y.softmax(1).masked_fill(~live, 0)  # (3), also 0 when no channel is live
        if self.weights == "increase":
            black = mask_images(images, torch.zeros_like(images[:, 0]), self.mean, self.std)
            y = y - prepared.score(black, target, self.score)[:, None]  # (2)
        return y.masked_fill(~live, 0)
