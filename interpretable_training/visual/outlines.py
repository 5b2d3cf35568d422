"""Outlines of masks and boxes over pictures."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COLOR = (0, 230, 255)  # stands out from the colors of maps


def draw_outlines(pictures: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    """Draw the outline of a mask (H, W) over each picture: uint8 (B, H, W, 3); None draws nothing.

    >>> drawn = draw_outlines(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), [torch.ones(8, 8, dtype=torch.bool)])
    >>> int((drawn[0, ..., 1] > 0).sum())  # the border of the picture
    28

    The outline is the inner border of the mask, one pixel wide, two in pictures from 128 pixels on.
    """
    if all(mask is None for mask in masks):
        return pictures
    drawn = pictures.clone()
    for picture, mask in zip(drawn, masks):
        if mask is not None and mask.shape == picture.shape[:2]:
            picture[border(mask.cpu(), 1 if min(mask.shape) < 128 else 2)] = torch.tensor(COLOR, dtype=torch.uint8)
    return drawn


def border(mask: Tensor, width: int = 1) -> Tensor:
    """Return the pixels (H, W) of a mask that are at most `width` from its outside; outside of the picture counts.

    >>> border(torch.ones(3, 3, dtype=torch.bool)).int().tolist()
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    outside = F.pad((~mask).float()[None, None], (width,) * 4, value=1.0)
    return mask & (F.max_pool2d(outside, 2 * width + 1, stride=1)[0, 0] > 0)
