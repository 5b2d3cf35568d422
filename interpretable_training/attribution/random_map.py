"""A random map, a control.

    S[p] ~ U(0, 1) at each pixel p    (1)

A method is informative only where its metrics are better than those of this map.
"""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .core.base import Attribution
from .core.prepared_model import PreparedModel
from .core.targets import Resolved


@dataclass(frozen=True)
class RandomMap(Attribution):
    """Draw noise for each image, which the bits of the image and the seed decide, also for an image of NaN.

    No model runs, so the number of classes is unknown: every class from 0 on is accepted.

    >>> RandomMap(seed=1)(network, images).shape
    torch.Size([4, 16, 16])
    """

    ignores_model: ClassVar[bool] = True

    seed: int = 0

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return torch.stack([self._noise(image) for image in images])

    def _noise(self, image: Tensor) -> Tensor:
        # The pixels seed the noise, so that the map depends neither on the batch nor on its order.
        content = image.detach().cpu().float().contiguous().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(content, self.seed))
        return torch.rand(image.shape[1:], generator=generator).to(image.device)  # (1)
