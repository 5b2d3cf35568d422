"""Turn normalized images into pictures again, and find the normalization of a data set or network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from .overlay import denormalize, in_thirds

SLACK = 0.02  # distance of pictures from [0, 1] after JPEG, resizing and rounding
HOLDERS = (
    "transform",
    "transforms",
    "dataset",
    "datasets",
    "trans",
    "preprocess",
    "normalize",
)  # of transforms
DEPTH = 10
SIDE, BAND = 192, 6  # pixels: of the picture of a signal, and of a channel in it


@dataclass(frozen=True)
class Colors:
    """Normalization of images, and how to undo it.

    >>> Colors((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "given").pictures(images).shape
    torch.Size([4, 3, 16, 16])

    Attributes:
        mean: Number subtracted from each channel; None if nothing was subtracted.
        std: Divisor of each channel.
        source: Where the numbers come from, in words.
        guessed: Whether the numbers are unknown and each picture is spread over [0, 1] instead.
        channels: Those shown as red, green and blue, counted from 1.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: str
    guessed: bool = False
    channels: tuple[int, ...] | None = None

    def showing(self, channels: Sequence[int] | None, C: int) -> "Colors":
        """Return the same for images of C channels, of which these are shown; by default as before.

        >>> Colors(None, None, "images lie in [0, 1]").showing((3, 2, 1), C=5).channels
        (3, 2, 1)
        """
        if channels is None:
            return self
        if len(channels) not in (1, 3) or not all(isinstance(c, int) and 1 <= c <= C for c in channels):
            raise ValueError(f"expected channels as three numbers from 1 to {C}, got {channels!r}.")
        return replace(self, channels=tuple(channels))

    def pictures(self, images: Tensor) -> Tensor:
        """Return images (B, C, ...) as pictures (B, 3, H, W) in [0, 1] on the CPU.

        A volume shows three slices side by side, a video three frames, those in the middle of each third; a signal a
        line for each channel. Images with neither one nor three channels show the mean of their channels.
        """
        images = images.detach().float().cpu()
        if images.ndim == 3:
            return torch.stack([_draw_signal(signal) for signal in images])
        if images.ndim == 5:
            frames = images.shape[1] not in (1, 3) and images.shape[2] in (1, 3)  # a video (B, T, C, H, W)
            images = in_thirds(images, 1 if frames else 2)
        if images.ndim != 4:
            raise ValueError(
                f"expected images (B, C, H, W), volumes (B, C, D, H, W), signals (B, C, T), got {tuple(images.shape)}."
            )
        if self.guessed or (self.mean is not None and len(self.mean) not in (1, images.shape[1])):
            low, high = (f(images.flatten(1), 1)[:, None, None, None] for f in (torch.amin, torch.amax))
            images = (images - low) / (high - low).clamp(min=1e-12)
        elif self.mean is not None and self.std is not None:
            images = denormalize(images, self.mean, self.std)
        if self.channels is not None:
            images = images[:, [c - 1 for c in self.channels]]
        images = images if images.shape[1] in (1, 3) else images.mean(1, keepdim=True)
        return images.clamp(0, 1).expand(-1, 3, -1, -1)


def _draw_signal(signal: Tensor, side: int = SIDE) -> Tensor:
    """Draw the channels of a signal (C, T) as black lines one below the other: (3, side, side).

    Each channel has its own scale. Channels for which there is no room are left out.
    """
    signal = signal[: side // BAND].nan_to_num()
    picture = Image.new("L", (side, side), 255)
    draw, C = ImageDraw.Draw(picture), len(signal)
    low, high = signal.amin(1, keepdim=True), signal.amax(1, keepdim=True)
    level = torch.where(high > low, (signal - low) / (high - low), 0.5)
    y = (torch.arange(C)[:, None] + 0.9 - 0.8 * level) * side / C
    x = (torch.arange(signal.shape[1]) + 0.5) * side / signal.shape[1]
    for channel in y:
        draw.line(torch.stack([x, channel], 1).flatten().tolist(), fill=0)
    return to_tensor(picture).expand(3, -1, -1)


def find_colors(
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data: Any = None,
    dataset: Any = None,
    module: nn.Module | None = None,
) -> Colors:
    """Find the normalization of `images`: given, of the data module, of the data set's transforms, or of the network.

    >>> find_colors(torch.rand(4, 3, 16, 16)).source
    'images lie in [0, 1]'

    Args:
        images: Some images (B, C, ...), by which guesses are checked.
        mean: Mean of each channel, given by the user together with `std`.
        std: Standard deviation of each channel.
        data: A data module that may have `mean` and `std`.
        dataset: A data set that may have a transform `Normalize`.
        module: A model that may have `pretrained_cfg`, as models of timm have.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"expected mean and std together, got mean={mean}, std={std}; pass both or neither.")
    if mean is not None and std is not None:
        return Colors(_floats(mean), _floats(std), "given")
    normalization = _mean_and_std(data)
    if normalization is not None and _far_off(images, normalization):
        normalization = None  # of bytes, such as 0 and 255 where the batch is in [0, 1] already
    if normalization is not None:
        return Colors(*normalization, f"mean and std of {type(data).__name__}")
    for holder in (dataset, data):
        for values in _normalizations(holder):
            return Colors(*values, f"Normalize of {type(holder).__name__}")
    if _within(images):
        return Colors(None, None, "images lie in [0, 1]")
    for part in module.modules() if module is not None else []:
        config = getattr(part, "pretrained_cfg", None)
        normalization = _mean_and_std(config) if type(part).__name__ != "Normalize" else _mean_and_std(part)
        if normalization is not None and _plausible(images, normalization):
            return Colors(*normalization, f"mean and std of {type(part).__name__}")
    return Colors(None, None, "not found: each image on its own scale", guessed=True)


def _normalizations(
    root: Any, depth: int = DEPTH, seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Yield mean and std of each `Normalize` among the transforms of a data set or data module."""
    if root is None or depth == 0 or id(root) in seen or isinstance(root, (str, Tensor, type)):
        return
    normalization = _mean_and_std(root) if type(root).__name__ == "Normalize" else None
    if normalization is not None:
        yield normalization
    inside = list(root)[:50] if isinstance(root, (list, tuple, nn.Sequential)) else []
    for part in [*inside, *(getattr(root, name, None) for name in HOLDERS)]:
        yield from _normalizations(part, depth - 1, seen | {id(root)})


def _mean_and_std(holder: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return `mean` and `std` of an object or a dict, None unless they are numbers for each channel."""
    get = holder.get if isinstance(holder, dict) else lambda name: getattr(holder, name, None)
    try:
        mean, std = _floats(get("mean")), _floats(get("std"))
    except (TypeError, ValueError, RuntimeError):
        return None
    return (mean, std) if len(mean) == len(std) and all(s > 0 for s in std) else None


def _floats(values: Any) -> tuple[float, ...]:
    """Return a number, a sequence or a tensor as a tuple of floats."""
    if values is None or callable(values):
        raise TypeError("expected numbers")
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten())


def _within(images: Tensor) -> bool:
    """Whether the images lie in [0, 1]."""
    return float(images.min()) >= -SLACK and float(images.max()) <= 1 + SLACK


def _far_off(images: Tensor, normalization: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Whether mean and std bring most of an image out of [0, 1], as those of bytes do."""
    mean, std = (torch.tensor(v).mean() for v in normalization)
    return float((images.float().mean() * std + mean).abs()) > 2


def _plausible(images: Tensor, normalization: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Whether mean and std bring the images into [0, 1]."""
    mean, std = normalization
    if len(mean) not in (1, images.shape[1]):
        return False
    shape = (1, -1, *[1] * (images.ndim - 2))
    m, s = (torch.tensor(v, dtype=torch.float32, device=images.device).view(shape) for v in (mean, std))
    return _within(images.float() * s + m)
