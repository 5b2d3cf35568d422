"""Order in which pixels are removed, and their replacements.

    pi      = pixels by falling S, ties by their index                                       (1)
    z[j]    = x, with the first pixels of pi replaced by r                                   (2)
    K[i, j] = k[i] k[j],  k = Gaussian filter of a unit impulse in the middle of the kernel,
              reflected at the kernel's own borders                                          (3)

(3) is how RISE's authors make the kernel of their blur: for sigma = 5 it is almost flat. S: map. x: image. r: what
replaces a pixel.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.map_operations import blur, mask_images, smooth
from interpretable_training.attribution.core.options import check_fields

from .base import Fact, described, joined_numbers

Ties = Literal["index", "reverse", "random"]
Substrate = Literal["mean", "black", "min", "uniform", "blur", "gaussian"]


def rank_pixels(saliency: Tensor, ties: Ties = "index", seed: int = 0) -> Tensor:
    """Return the place (B, *spatial) of each pixel in the order (1): 0 for the most salient.

    Args:
        saliency: maps (B, *spatial).
        ties: equal pixels by "index", in "reverse", or in one "random" order, the same for all images.
        seed: of the random order.
    """
    S = saliency.flatten(1)
    n = S.shape[1]
    if ties == "reverse":
        order = S.argsort(dim=1, stable=True).flip(1)
    elif ties == "random":
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(S.device)
        order = shuffled[S[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    else:
        order = S.argsort(dim=1, descending=True, stable=True)  # (1)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(n, device=S.device).expand_as(order))
    return rank.view(saliency.shape)


def rank_patches(saliency: Tensor, size: int) -> Tensor:
    """Return the place (B, H, W) of each pixel's patch, by the sum of S in patches of `size` cells a side."""
    H, W = saliency.shape[1:]
    padded = F.pad(saliency[:, None], (0, -W % size, 0, -H % size))  # patches at the border may be smaller
    sums = F.avg_pool2d(padded, size)[:, 0]
    rank = rank_pixels(sums)
    return rank.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :H, :W]


@dataclass(frozen=True)
class Replacement:
    """r, what pixels are replaced by.

    Args:
        substrate: "mean" is zero, the mean color of normalized images; "black" needs `mean` and `std`, and is zero
            without them; "min" is the lowest value of each image; "uniform" are random values between each image's
            lowest and highest; "blur" is RISE's (3), with zeros around the image; "gaussian" a normalized Gaussian
            with mirrored borders; or a tensor that broadcasts to the images.
        kernel: side of the kernel of a blur.
        sigma: of a blur.
        mean: the normalization's, one per channel, for "black".
        std: see `mean`.
        seed: of the "uniform" values, which are the same for all images.
    """

    substrate: Substrate | Tensor
    kernel: int = 11
    sigma: float = 5.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, images: Tensor) -> Tensor:
        """Return r (B, C, *spatial) of `images`."""
        dims = tuple(range(1, images.ndim))
        if isinstance(self.substrate, Tensor):
            try:
                return self.substrate.to(images).expand_as(images)
            except RuntimeError as error:
                raise ValueError(
                    f"expected a substrate that broadcasts to images {tuple(images.shape)}, got a tensor "
                    f"{tuple(self.substrate.shape)}."
                ) from error
        if self.substrate == "min":
            return images.amin(dims, keepdim=True).expand_as(images)
        if self.substrate == "uniform":
            low, high = images.amin(dims, keepdim=True), images.amax(dims, keepdim=True)
            noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(self.seed))
            return low + (high - low) * noise.to(images)
        if self.substrate == "blur":
            return smooth(images, rise_kernel(self.kernel, self.sigma), "constant")
        if self.substrate == "gaussian":
            return blur(images, self.kernel, self.sigma, "reflect")
        everywhere = torch.zeros_like(images[:, 0])
        mean, std = (self.mean, self.std) if self.substrate == "black" else (None, None)
        return mask_images(images, everywhere, mean, std)

    def with_normalization(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> "Replacement":
        """Return the same with the mean and std of the data, where none were given."""
        return self if self.mean is not None else replace(self, mean=mean, std=std)

    def facts(self) -> dict[str, Fact]:
        """Return the facts for the passport."""
        named = self.substrate if isinstance(self.substrate, str) else None
        named = "mean" if named == "black" and self.mean is None else named  # which cannot be told apart
        blurred = named in ("blur", "gaussian")
        return {
            "substrate": named or described(self.substrate),
            "kernel": self.kernel if blurred else None,
            "sigma": self.sigma if blurred else None,
            "black_mean": joined_numbers(self.mean) if named == "black" else None,
            "black_std": joined_numbers(self.std) if named == "black" else None,
            "substrate_seed": self.seed if named == "uniform" else None,
        }


def rise_kernel(kernel: int, sigma: float) -> Tensor:
    """Return one side k of the kernel (3), (kernel,)."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"expected an odd kernel, whose middle is a pixel, got {kernel}.")
    reach = int(4 * sigma + 0.5)
    t = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight = (-(t**2) / (2 * sigma**2)).exp()
    weight = weight / weight.sum()
    cell = torch.arange(kernel)[:, None] + torch.arange(-reach, reach + 1)  # that output i looks at
    cell = cell % (2 * kernel)
    cell = torch.where(cell < kernel, cell, 2 * kernel - 1 - cell)  # reflected
    return (weight * (cell == kernel // 2)).sum(1)  # (3)
