"""Guided Grad-CAM. Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391

    phi = n(up(L)) g                        (1)
    S   = max over channels of |phi|        (2)

L: Grad-CAM of `layer`. g: gradient of guided backpropagation at the image (C, H, W). n: range normalization. Both
gradients come from one forward pass; the guided rule is switched off for L.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.activation_gates import gates
from .core.base import Attribution, full
from .core.capture import gradients, grid_of, ran, tap
from .core.map_operations import normalize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved
from .grad_cam import GradCAM
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class GuidedGradCAM(Attribution):
    """Multiply the map of Grad-CAM with the gradient of guided backpropagation.

    >>> GuidedGradCAM()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        layer: of Grad-CAM: "auto" or a dotted name.
        reduce: of the channels, see `Gradient`.
        align_corners: passed to the interpolation that upsamples the map.
    """

    layer: str = "auto"
    reduce: Reduce = "max_abs"
    align_corners: bool = False

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        cam = GradCAM(layer=self.layer, align_corners=self.align_corners)
        (layer,) = cam.layers(prepared, images, target)
        with gates("guided") as mode:
            assert mode is not None
            with torch.enable_grad(), tap(prepared.module, [layer]) as outputs, mode:
                x = images.detach().requires_grad_()
                y = prepared.score(x, target)
            A = ran(outputs, layer)[-1]
            mode.on = False
            dA = gradients(y, {"A": A}, retain_graph=True, create_graph=prepared.create_graph)["A"]
            mode.on = True
            g = gradients(y, {"x": x}, create_graph=prepared.create_graph)["x"]
        grid = grid_of(prepared, images, layer, A, target)
        L = cam.fuse([cam.combine(full(grid.read(A)), full(grid.read(dA)))], images)
        return reduce_channels(normalize(L)[:, None] * g, self.reduce)  # (1), (2)
