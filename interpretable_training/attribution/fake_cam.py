"""Fake-CAM, a control. Poppi et al., CVPR-W 2021, https://arxiv.org/abs/2104.10252

    S = 1 everywhere but 0 at the top left    (1)

The map depends on nothing, but scores well under metrics that can be fooled.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .core.base import Attribution
from .core.prepared_model import PreparedModel
from .core.targets import Resolved


@dataclass(frozen=True)
class FakeCAM(Attribution):
    """Return the same map for every image and model, also for an image of NaN.

    No model runs, so the number of classes is unknown: every class from 0 on is accepted.

    >>> FakeCAM()(network, images).sum((1, 2))
    tensor([255., 255., 255., 255.])
    """

    ignores_model: ClassVar[bool] = True

    @property
    def final(self) -> bool:
        return True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        S = images.new_ones(len(images), *images.shape[2:])
        S.flatten(1)[:, 0] = 0
        return S  # (1)
