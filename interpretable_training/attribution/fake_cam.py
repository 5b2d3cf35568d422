"""Fake-CAM, a control. Poppi et al., CVPR-W 2021, https://arxiv.org/abs/2104.10252

    S = 1 everywhere but 0 at the top left    (1)

The map depends on nothing, but scores well under metrics that can be fooled.
"""

from dataclasses import dataclass

from torch import Tensor

from .core.base import Attribution
from .core.prepared_model import PreparedModel
from .core.targets import Resolved


@dataclass(frozen=True)
class FakeCAM(Attribution):
    """Return the same map for every image and model: a control.

    >>> FakeCAM()(network, images).shape
    torch.Size([4, 16, 16])
    """

    @property
    def final(self) -> bool:
        return True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        S = images.new_ones(len(images), *images.shape[2:])
        S.flatten(1)[:, 0] = 0
        return S  # (1)
