"""Background swap: training images get the background of another image of their batch.

    W_i  = pixels at most r pixels away from the object of image i      (1)
    b_j  = x_j outside of W_j, m_j + s_j n inside                        (2)
    x'_i = x_i inside of W_i, b_j outside                                (3)

x: images. r: `widen`, along rows, columns and diagonals. m_j, s_j: mean and standard deviation of each channel of x_j
outside of W_j. n: normal noise. j: another image of the batch with an object, drawn at random for each i.

What predicts the class outside of the object then predicts nothing. These are the mixed backgrounds of Xiao et al.,
"Noise or Signal: The Role of Image Backgrounds in Object Recognition", ICLR 2021, https://arxiv.org/abs/2006.09994.
Differs from the paper: they serve training, not testing; the object of j is filled with noise (2), not tiled over; a
margin of the old background stays (1).
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SwapRegion = Literal["auto", "mask", "boxes"]


@dataclass(frozen=True)
class SwapBackgrounds:
    """Give a share of the images with a known object the background of another one.

    >>> objects = torch.zeros(4, 16, 16, dtype=torch.bool)
    >>> objects[:3, 4:12, 4:12] = True  # the last image has no annotation and stays as it is
    >>> swapped = SwapBackgrounds(share=1.0)(images, objects, torch.Generator().manual_seed(0))
    >>> (swapped != images).flatten(1).any(1).tolist()
    [True, True, True, False]

    Args:
        share: Share of the images with an object that get another background.
        widen: Pixels around the object that stay as they are, r of (1); 0 where the background itself is the cue.
        region: Annotation that holds the object: the "mask", the "boxes", or "auto", the mask if there is one.
        from_epoch: First epoch in which callbacks swap; 1 is the second one.
        seed: Seed of the draws of callbacks.
    """

    share: float = 0.7
    widen: int = 3
    region: SwapRegion = "auto"
    from_epoch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share}; leave the swap out to change no image.")
        if self.region not in ("auto", "mask", "boxes"):
            raise ValueError(f"expected region 'auto', 'mask' or 'boxes', got {self.region!r}; pass one of them.")
        if min(self.widen, self.from_epoch, self.seed) < 0:
            raise ValueError(
                f"expected widen, from_epoch and seed of at least 0, got {self.widen}, {self.from_epoch}, {self.seed}."
            )

    def __call__(self, images: Tensor, objects: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (B, C, H, W) with some backgrounds swapped.

        Args:
            images: Floating point images.
            objects: Pixels of the object of each (B, H, W); images without any keep their background and lend none.
            generator: Source of the draws, on the device of the images; by default torch's global one.
        """
        check_objects(images, objects)
        W = widened(objects > 0, self.widen)  # (1)
        known, B, device = objects.flatten(1).any(1), len(images), images.device
        lends = known & ~W.flatten(1).all(1)
        pairs = lends & ~torch.eye(B, dtype=torch.bool, device=device)  # (i, j)
        j = torch.rand(B, B, generator=generator, device=device).masked_fill(~pairs, -1.0).argmax(1)
        chosen = (torch.rand(B, generator=generator, device=device) < self.share) & known & pairs.any(1)
        b = without_objects(images, W, torch.randn(images.shape, generator=generator, device=device))
        stays = W | ~chosen[:, None, None]
        return torch.where(stays[:, None], images, b[j])  # (3)


def widened(mask: Tensor, pixels: int) -> Tensor:
    """Return a mask (B, H, W) with all pixels at most so many pixels away from it, diagonally too."""
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


def without_objects(images: Tensor, W: Tensor, n: Tensor) -> Tensor:
    """Return b (B, C, H, W): images, W (B, H, W) filled with the mean of the rest and noise n of its deviation."""
    rest = ~W[:, None]
    x, count = images.float().where(rest, 0), rest.sum((2, 3), keepdim=True).clamp(min=1)
    m = x.sum((2, 3), keepdim=True) / count
    s = (((x - m) * rest).square().sum((2, 3), keepdim=True) / count).sqrt()
    return torch.where(rest, x, m + s * n).to(images.dtype)  # (2)


def check_objects(images: Tensor, objects: Tensor) -> None:
    """Refuse images that are no floating point (B, C, H, W), and objects of another size."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"expected floating point images (B, C, H, W), got {tuple(images.shape)} of {images.dtype}; convert them "
            "in the data set."
        )
    wanted = (len(images), *images.shape[2:])
    if tuple(objects.shape) != wanted:
        raise ValueError(
            f"expected objects {wanted}, one mask per image at its resolution, got {tuple(objects.shape)}; resize the "
            "masks with the images."
        )


def generator_of_step(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator that depends on a key alone, such as (seed, epoch, batch, process)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
