"""Guided Expected Grad-CAM. Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023.

    phi = mean over s of (x - x'[s]) * dy(x[s])/dx     (1)
    H   = n(up(L)) phi                                 (2)
    S   = sum over channels of |H|                     (3)

L: Expected Grad-CAM. x: image (C, H, W). x'[s], x[s]: the same baselines and draws as for L, so that one backward pass
for each draw gives both gradients. y: logit. n: range normalization.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import Attribution
from .core.baselines import features
from .core.map_operations import normalize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved
from .expected_grad_cam import ExpectedGradCAM, PathDraws, for_draws, mean_map
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class GuidedExpectedGradCAM(Attribution):
    """Multiply the map of Expected Grad-CAM with expected gradients of the image.

    >>> cam = ExpectedGradCAM(baselines=torch.zeros(2, 3, 16, 16), n=4)
    >>> GuidedExpectedGradCAM(cam)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        cam: Expected Grad-CAM of one layer, with its baselines and draws.
        reduce: of the channels, see `Gradient`.
    """

    cam: ExpectedGradCAM
    reduce: Reduce = "abs_sum"

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        cam = self.cam
        if not isinstance(cam, ExpectedGradCAM):  # `add` computes the weights of this class only
            raise TypeError(f"expected an ExpectedGradCAM as cam, got {type(cam).__name__}.")
        layers = cam.layers(prepared, images, target)
        if len(layers) > 1 or not cam.upsample or cam.rule != "plain":
            raise ValueError("expected a cam of one layer with upsample=True and rule='plain'; change its options.")
        A = features(prepared, images, target, layers[0], cam.chunk_size)
        total, B = cam.batches * cam.n, len(images)
        w = torch.zeros(cam.batches * B, A.shape[1], dtype=A.dtype, device=A.device)
        phi = torch.zeros(images.shape, dtype=A.dtype, device=A.device)

        def add(rows: PathDraws) -> None:
            w.index_add_(0, rows.batch * B + rows.i, (rows.G * rows.D).flatten(2).mean(2) / cam.n)
            assert rows.dx is not None
            phi.index_add_(0, rows.i, rows.dx / total)  # (1)

        for_draws(cam, prepared, images, target, layers[0], A, add, of_input=True)
        L = cam.fuse([mean_map(w, A, cam.relu)], images)
        return reduce_channels(normalize(L)[:, None] * phi, self.reduce)  # (2), (3)
