"""How a normalized image becomes a picture again, wherever the numbers for that are to be found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from .overlay import denormalize

SLACK = 0.02  # how far pictures may lie outside [0, 1]: JPEG, resizing and rounding
HOLDERS = ("transform", "transforms", "dataset", "datasets", "trans", "preprocess", "normalize")  # where transforms lie
DEPTH = 10
SIDE, BAND = 192, 6  # pixels of the picture of a signal, and that a channel needs in it


@dataclass(frozen=True)
class Colors:
    """How images become pictures in [0, 1].

    Attributes:
        mean: what was subtracted from each channel; None if nothing was.
        std: what the difference was divided by.
        source: where that was found, in words.
        guessed: whether each picture is spread over [0, 1] instead, since nothing was found.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: str
    guessed: bool = False

    def pictures(self, images: Tensor) -> Tensor:
        """Images (B, C, ...) as pictures (B, 3, H, W) in [0, 1] on the CPU.

        Of a volume the middle slice is shown, of channels that are neither one nor three their mean; of a signal a line
        for each channel.
        """
        images = images.detach().float().cpu()
        if images.ndim == 3:
            return torch.stack([lines(signal) for signal in images])
        if images.ndim == 5:
            images = images[:, :, images.shape[2] // 2]
        if images.ndim != 4:
            raise ValueError(
                f"expected images (B, C, H, W), volumes (B, C, D, H, W), signals (B, C, T), got {tuple(images.shape)}."
            )
        if self.guessed or (self.mean is not None and len(self.mean) not in (1, images.shape[1])):
            low, high = (f(images.flatten(1), 1)[:, None, None, None] for f in (torch.amin, torch.amax))
            images = (images - low) / (high - low).clamp(min=1e-12)
        elif self.mean is not None and self.std is not None:
            images = denormalize(images, self.mean, self.std)
        images = images if images.shape[1] in (1, 3) else images.mean(1, keepdim=True)
        return images.clamp(0, 1).expand(-1, 3, -1, -1)


def lines(signal: Tensor, side: int = SIDE) -> Tensor:
    """A signal (C, T) as black lines on white (3, side, side), the first channel at the top, each in a band of its own.

    Each channel has its own scale; of many the first are shown.
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
    """The normalization of `images`: given, of the data module, of the data set's transforms, or of the network.

    Args:
        images: some of them, (B, C, ...), which tell whether a guess can be right.
        mean: given by the user, with `std`.
        std: see `mean`.
        data: a data module that may have `mean` and `std`.
        dataset: a data set that may have a transform `Normalize`.
        module: a model that may have `pretrained_cfg`, as those of timm.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"expected mean and std together, got mean={mean}, std={std}; pass both or neither.")
    if mean is not None and std is not None:
        return Colors(numbers(mean), numbers(std), "given")
    found = pair_of(data)
    if found is not None:
        return Colors(*found, f"mean and std of {type(data).__name__}")
    for holder in (dataset, data):
        for normalization in normalizations(holder):
            return Colors(*normalization, f"Normalize of {type(holder).__name__}")
    if within(images):
        return Colors(None, None, "images lie in [0, 1]")
    for part in module.modules() if module is not None else []:
        config = getattr(part, "pretrained_cfg", None)
        found = pair_of(config) if type(part).__name__ != "Normalize" else pair_of(part)
        if found is not None and plausible(images, found):
            return Colors(*found, f"mean and std of {type(part).__name__}")
    return Colors(None, None, "not found: each image on its own scale", guessed=True)


def normalizations(
    root: Any, depth: int = DEPTH, seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and std of each `Normalize` among the transforms of a data set or data module."""
    if root is None or depth == 0 or id(root) in seen or isinstance(root, (str, Tensor, type)):
        return
    found = pair_of(root) if type(root).__name__ == "Normalize" else None
    if found is not None:
        yield found
    inside = list(root)[:50] if isinstance(root, (list, tuple, nn.Sequential)) else []
    for part in [*inside, *(getattr(root, name, None) for name in HOLDERS)]:
        yield from normalizations(part, depth - 1, seen | {id(root)})


def pair_of(holder: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """`mean` and `std` of an object or a dict, if they are numbers for each channel."""
    get = holder.get if isinstance(holder, dict) else lambda name: getattr(holder, name, None)
    try:
        mean, std = numbers(get("mean")), numbers(get("std"))
    except (TypeError, ValueError, RuntimeError):
        return None
    return (mean, std) if len(mean) == len(std) and all(s > 0 for s in std) else None


def numbers(values: Any) -> tuple[float, ...]:
    """A number, a sequence or a tensor as a tuple of numbers."""
    if values is None or callable(values):
        raise TypeError("expected numbers")
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten())


def within(images: Tensor) -> bool:
    """Whether the images lie in [0, 1]."""
    return float(images.min()) >= -SLACK and float(images.max()) <= 1 + SLACK


def plausible(images: Tensor, normalization: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Whether the images could have been normalized so."""
    mean, std = normalization
    if len(mean) not in (1, images.shape[1]):
        return False
    shape = (1, -1, *[1] * (images.ndim - 2))
    m, s = (torch.tensor(v, dtype=torch.float32, device=images.device).view(shape) for v in (mean, std))
    return within(images.float() * s + m)
