"""Segmentation: the score of a class is its mean logit over a mask.

    y[c] = 1 / |M[c]| * sum over (i, j) in M[c] of A[c, i, j]             (1)
    p[c] = 1 / |M[c]| * sum over (i, j) in M[c] of softmax(A)[c, i, j]    (2)

A: logits (C, h, w). M[c]: the pixels that the unchanged image has of class c, as predicted or labeled; one connected
part of them; or one pixel.
Up to the factor 1 / |M|, which scales a map as a whole, (1) is the score of Seg-Grad-CAM, Vinogradova et al., AAAI
2020, https://arxiv.org/abs/2002.11434.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.components import connected_components

from .base import Example, Task
from .outputs import entry_of


@dataclass(frozen=True)
class Masks:
    """Masks of one image: of each predicted class, then of each labeled one.

    >>> Segmentation().reference(torch.zeros(1, 3, 8, 8), Example(images[:1])).pixels.shape
    torch.Size([3, 8, 8])

    Attributes:
        pixels: (M, h, w) at the resolution of the logits.
        labeled: number of classes C from which on masks are of the label.
        size: height and width of the image.
        labels: pixels of each labeled class; empty without a label.
    """

    pixels: Tensor
    labeled: int
    size: tuple[int, int]
    labels: list[int]


@dataclass(frozen=True)
class Segmentation(Task):
    """Explain a class over its mask, over one object of it, or at one pixel.

    >>> Segmentation(pixel=(8, 8)).scores(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 3])

    Args:
        pixel: row and column of the only pixel that is explained; by default the mask of each class.
        background: class that is explained only where nothing else is predicted; None if there is none.
        one_object: take one connected part of each mask: the largest, or with `pixel` the one that holds it. Pixels
            that touch at a corner are connected.
    """

    pixel: tuple[int, int] | None = None
    background: int | None = 0
    one_object: bool = False
    name = "segmentation"
    follows = True

    def logits(self, output: Any) -> Tensor:
        """Return the logits (n, C, h, w) in an output: a tensor, or the entry "out" or "logits"; C is at least 2."""
        A = entry_of(output, "out", "logits")
        if not isinstance(A, Tensor) or A.ndim != 4:
            got = f"shape {tuple(A.shape)}" if isinstance(A, Tensor) else type(A).__name__
            raise ValueError(f"expected logits (B, C, H, W) for segmentation, got {got}; pass output= or task=.")
        return torch.cat([-A, A], 1) if A.shape[1] == 1 else A

    def reference(self, output: Any, example: Example) -> Masks:
        A = self.logits(output).detach()[0]
        C, size = len(A), (int(example.image.shape[-2]), int(example.image.shape[-1]))
        pixels = F.one_hot(A.argmax(0), C).permute(2, 0, 1).bool()
        at = None if self.pixel is None else self._cell(pixels, size)
        if at is not None and not self.one_object:
            chosen = torch.zeros_like(pixels)
            chosen[:, at[0], at[1]] = True
            return Masks(chosen, C, size, [])
        label = labeled_classes(example)
        if label is not None:
            label = F.interpolate(label[None, None].float(), A.shape[1:], mode="nearest")[0, 0].long().to(A.device)
            pixels = torch.cat([pixels, torch.stack([label == c for c in range(C)])])
        if self.one_object:
            pixels = one_component(pixels, at)
        return Masks(pixels, C, size, [int(mask.sum()) for mask in pixels[C:]])

    def _cell(self, pixels: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the pixel at the resolution of the logits."""
        assert self.pixel is not None
        (i, j), (H, W) = self.pixel, size
        if not (0 <= i < H and 0 <= j < W):
            raise ValueError(f"expected pixel as row and column inside of {H} x {W}, got {self.pixel}.")
        return i * pixels.shape[1] // H, j * pixels.shape[2] // W

    def scores(self, output: Any, reference: Masks | None = None) -> Tensor:
        return self._over_masks(self.logits(output), reference)  # (1)

    def prob(self, output: Any, reference: Masks | None = None) -> Tensor:
        return self._over_masks(self.logits(output).softmax(1), reference)  # (2)

    def _over_masks(self, A: Tensor, reference: Masks | None) -> Tensor:
        """Return the mean of A (n, C, h, w) over each mask, (n, M); the whole image where there is no reference."""
        if reference is None:
            return A.mean((2, 3))
        M = reference.pixels.to(A)
        C = reference.labeled
        A = torch.cat([A] * (len(M) // C), 1) if len(M) > C else A
        return (A * M).sum((2, 3)) / M.sum((1, 2)).clamp(min=1)

    def ranking(self, scores: Tensor, reference: Masks | None = None) -> Tensor:
        """Return the areas of the predicted masks; at one pixel the logits."""
        if reference is None or (self.pixel is not None and not self.one_object):
            return scores
        areas = reference.pixels.flatten(1).sum(1).to(scores)
        areas[reference.labeled :] = -1
        if self.background is not None and self.background < reference.labeled:
            areas[self.background] = areas[self.background].clamp(max=0.5)  # last of those that are predicted
        return areas.expand(len(scores), -1)

    def label(self, reference: Masks, example: Example) -> int | None:
        areas = [area if c != self.background else 0 for c, area in enumerate(reference.labels)]
        largest = max(areas, default=0)
        return reference.labeled + areas.index(largest) if largest else None

    def class_of(self, column: int, reference: Masks | None = None) -> int:
        return column if reference is None else column % reference.labeled

    def caption(self, column: int, reference: Masks | None = None, class_names: Sequence[str] | None = None) -> str:
        name = super().caption(column, reference, class_names)
        if reference is None:
            return name
        if self.pixel is not None and not self.one_object:
            return f"{name} at {self.pixel}"
        area = f"{100 * float(reference.pixels[column].float().mean()):.3g} % of the image"
        area = f"one object, {area}" if self.one_object else area
        return f"{name}, {area}" + (" (label)" if column >= reference.labeled else "")

    def outline(self, column: int, reference: Masks | None = None) -> Tensor | None:
        if reference is None:
            return None
        return F.interpolate(reference.pixels[column][None, None].float(), reference.size, mode="nearest")[0, 0] > 0.5

    def dense(self, output: Any) -> int | None:
        return int(entry_of(output, "out", "logits").shape[1])

    def describe(self, output: Any) -> str:
        _, C, h, w = self.logits(output).shape
        note = "" if self.background is None else f"; class {self.background} counts as background"
        return f"logits of {C} classes on {h} x {w} pixels, taken as segmentation{note}"


def one_component(masks: Tensor, at: tuple[int, int] | None = None) -> Tensor:
    """Return the largest connected part of each mask (M, h, w), or the one that holds a pixel; empty where it has none.

    >>> one_component(torch.tensor([[[True, False, True, True]]])).tolist()
    [[[False, False, True, True]]]
    """
    numbers = connected_components(masks, 8)
    if at is None:
        areas = [n[m].bincount(minlength=2) for n, m in zip(numbers, masks)]
        chosen = torch.stack([area.argmax() for area in areas])
    else:
        chosen = numbers[:, at[0], at[1]]
    return masks & (numbers == chosen[:, None, None])


def labeled_classes(example: Example) -> Tensor | None:
    """Return the class of each pixel (H, W) in the target or among the entries of a batch, None without it.

    >>> labeled_classes(Example(images[:1], torch.ones(1, 2, 2, dtype=torch.long))).tolist()
    [[1, 1], [1, 1]]
    """
    named = [example.rest[name] for name in ("mask", "masks", "labels", "label") if name in example.rest]
    for value in (example.target, *named, *example.rest.values()):
        if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
            continue
        value = value[:, 0] if value.ndim == 4 and value.shape[1] == 1 else value
        if value.ndim == 3 and len(value) == 1:
            return value[0].long()
    return None
