"""Operations on maps of any method, and on images: normalize, resize, mask, blur.

    range:    n(S) = (S - min S) / (max S - min S)    (1)
    max:      n(S) = S / max S                        (2)
    sigmoid:  n(S) = 1 / (1 + exp(-S))                (3)

S: saliency (B, H, W). min and max are taken over each map. A constant map has no range and becomes zero.
"""

from collections.abc import Sequence
from numbers import Real
from types import NoneType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranges import check_normalization

Normalization = Literal["range", "max", "sigmoid"]
Borders = Literal["replicate", "reflect", "constant"]
EPS = 1e-8
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def one_of(name: str, value: object, *allowed: object) -> None:
    """Raise an error unless an option has one of the allowed values."""
    if not isinstance(value, (str, Real, NoneType)) or value not in allowed:
        raise ValueError(f"expected {name} to be one of {allowed}, got {value!r}.")


def normalize(saliency: Tensor, mode: Normalization = "range", constant: Literal["zeros", "ones"] = "zeros") -> Tensor:
    """Return maps (B, ...) scaled to [0, 1] each; constant maps become `constant`.

    >>> n = normalize(5 * saliency - 2)
    >>> float(n.min()), float(n.max())
    (0.0, 1.0)
    """
    one_of("mode", mode, "range", "max", "sigmoid")
    one_of("constant", constant, "zeros", "ones")
    if mode == "sigmoid":
        return saliency.sigmoid()  # (3)
    dims = tuple(range(1, saliency.ndim))
    S = saliency - saliency.amin(dims, keepdim=True) if mode == "range" else saliency
    top = S.amax(dims, keepdim=True)
    flat = top <= EPS * _scale_of(saliency)
    n = S / top.masked_fill(flat, 1)  # (1), (2)
    return n.masked_fill(flat, 0.0 if constant == "zeros" else 1.0)


def _scale_of(saliency: Tensor) -> Tensor:
    """Return the largest magnitude of each map; a range that is tiny compared with it counts as constant."""
    return saliency.abs().amax(tuple(range(1, saliency.ndim)), keepdim=True)


def degenerate(saliency: Tensor) -> Tensor:
    """Return which maps (B, ...) are constant or have a value that is not a number, (B,).

    >>> degenerate(torch.stack([saliency[0], torch.ones(16, 16)]))
    tensor([False,  True])
    """
    S = saliency.flatten(1)
    spread = S.amax(1) - S.amin(1)
    return ~(spread > EPS * S.abs().amax(1))


def finite_rows(images: Tensor, finite: Tensor) -> Tensor:
    """Return `images` (B, C, ...) with copies of the first finite one in place of those that are not `finite` (B,).

    Otherwise one image could fail checks of the whole batch, and rectifiers and masks could hide its values.
    """
    first = images.index_select(0, finite.int().argmax()[None]).nan_to_num(0, 0, 0)  # no wait for the device
    return torch.where(finite.view(-1, *[1] * (images.ndim - 1)), images, first)


def nan_rows(maps: Tensor, rows: Tensor) -> Tensor:
    """Return maps (B, ...) that are NaN everywhere in `rows` (B,)."""
    return maps.masked_fill(rows.view(-1, *[1] * (maps.ndim - 1)), torch.nan)


def resize(saliency: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Return maps (B, *spatial) or volumes (B, K, *spatial), linearly interpolated to `size`."""
    volume = saliency if saliency.ndim == len(size) + 2 else saliency[:, None]
    if tuple(volume.shape[2:]) != tuple(size):
        volume = F.interpolate(volume, tuple(size), mode=INTERPOLATION[len(size)], align_corners=align_corners)
    return volume if volume.ndim == saliency.ndim else volume[:, 0]


def mask_images(
    images: Tensor, mask: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Tensor:
    """Return `images` (B, C, H, W), unchanged where `mask` (B, H, W) is 1 and faded out where it is 0.

    With the `mean` and `std` of the normalization of the images they fade to black, otherwise to zero, the mean color:
    (x * std + mean) * mask is normalized again, which is x * mask - (1 - mask) * mean / std.

    >>> mask_images(images, normalize(saliency)).shape
    torch.Size([4, 3, 16, 16])
    """
    mask = mask[:, None].to(images.dtype)
    check_normalization(mean, std)
    if mean is None or std is None:
        return images * mask
    if len(mean) not in (1, images.shape[1]):
        raise ValueError(f"expected one mean and std per channel, {images.shape[1]} of them, got mean={mean}.")
    shape = (1, -1, *[1] * (images.ndim - 2))
    black = torch.as_tensor([-m / s for m, s in zip(mean, std)], dtype=images.dtype, device=images.device).view(shape)
    return images * mask + black * (1 - mask)


def blur(images: Tensor, kernel: int = 11, sigma: float = 5.0, borders: Borders = "replicate") -> Tensor:
    """Return `images` (B, C, *spatial), blurred by a normalized Gaussian of `kernel` cells per axis."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"expected an odd kernel, whose middle is a pixel, got {kernel}.")
    t = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    weight = (-(t**2) / (2 * sigma**2)).exp()
    return smooth(images, weight / weight.sum(), borders)


def smooth(images: Tensor, weight: Tensor, borders: Borders) -> Tensor:
    """Return `images` (B, C, *spatial), convolved with the product of `weight` (k,) along each axis.

    The images are padded by their borders ("replicate"), their mirror image ("reflect") or zeros ("constant").
    """
    reach = len(weight) // 2
    for dim in range(2, images.ndim):
        lines = images.movedim(dim, -1)
        n = lines.shape[-1]
        mode = "replicate" if borders == "reflect" and n <= reach else borders  # the image is too small to mirror
        flat = F.pad(lines.reshape(-1, 1, n), [reach] * 2, mode=mode)
        images = F.conv1d(flat, weight.to(images).view(1, 1, -1)).reshape(lines.shape).movedim(-1, dim)
    return images
