"""A random map, a control.

    S[p] ~ U(0, 1) at each pixel p    (1)

What a method gains over it is what it knows.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .core.base import Attribution
from .core.prepared_model import PreparedModel
from .core.targets import Resolved


@dataclass(frozen=True)
class RandomMap(Attribution):
    """Noise, another for every image, which the image and the seed decide."""

    seed: int = 0

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return torch.stack([self._noise(image) for image in images])

    def _noise(self, image: Tensor) -> Tensor:
        # Seeded by the pixels, so that neither the batch nor the order of the images matters.
        content = image.detach().cpu().float().contiguous().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(content, self.seed))
        return torch.rand(image.shape[1:], generator=generator).to(image.device)  # (1)
