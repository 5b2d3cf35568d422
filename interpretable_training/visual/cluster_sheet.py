"""A cluster of images on one sheet: pictures, maps, and the content that the images share."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .overlay import overlay
from .sheet import draw_sheet

FRAME = (255, 210, 0)


def draw_cluster(
    pictures: Tensor, maps: Tensor, corners: Tensor, side: int, mean_picture: Tensor, mean_map: Tensor
) -> Image.Image:
    """Draw the means of a cluster and some of its images: picture with the content framed, map, and the content itself.

    >>> draw_cluster(images.sigmoid(), saliency, torch.zeros(4, 2).long(), 4, images[0].sigmoid(), saliency[0]).height
    366

    Args:
        pictures: in [0, 1] (n, 3, H, W).
        maps: of the pictures (n, H, W).
        corners: upper left corner of the content in each picture, row and column (n, 2).
        side: of the content, in pixels.
        mean_picture: mean of all pictures of the cluster (3, H, W).
        mean_map: mean of all maps of the cluster (H, W).
    """
    crops = torch.stack([crop(picture, corner, side) for picture, corner in zip(pictures, corners.tolist())])
    every = torch.cat([mean_picture[None], pictures]).float().cpu()
    rows = {
        "picture": torch.cat([as_uint8(every[:1]), framed(as_uint8(every[1:]), corners, side)]),
        "map": overlay(every, torch.cat([mean_map[None], maps])),
        "content": as_uint8(torch.cat([crops.mean(0, keepdim=True), crops])),
    }
    return draw_sheet(rows, ["mean", *["" for _ in pictures]])


def crop(picture: Tensor, corner: list[int], side: int) -> Tensor:
    """Return the square at a corner of a picture (3, H, W), enlarged four times, (3, 4 side, 4 side)."""
    y, x = corner
    square = picture[:, y : y + side, x : x + side].float().cpu()
    return F.interpolate(square[None], (4 * side, 4 * side), mode="nearest")[0]


def framed(pictures: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return pictures, uint8 (n, H, W, 3), with a frame of one pixel around the square at each corner."""
    pictures, (H, W) = pictures.clone(), pictures.shape[1:3]
    color = torch.tensor(FRAME, dtype=torch.uint8)
    for picture, (y, x) in zip(pictures, corners.tolist()):
        top, left, bottom, right = max(0, y - 1), max(0, x - 1), min(H - 1, y + side), min(W - 1, x + side)
        picture[[top, bottom], left : right + 1] = color
        picture[top : bottom + 1, [left, right]] = color
    return pictures


def as_uint8(pictures: Tensor) -> Tensor:
    """Return pictures (n, 3, H, W) in [0, 1] as uint8 (n, H, W, 3)."""
    return pictures.float().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
