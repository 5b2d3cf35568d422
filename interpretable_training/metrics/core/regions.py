"""Regions of the object, as pixels and as boxes, whichever of them a batch carries.

    U = union of the boxes, or the mask               (1)
    IoU(a, b) = |a and b| / (|a| + |b| - |a and b|)    (2)

A box is x1, y1, x2, y2 with x2, y2 just outside; a pixel lies in it if its middle does. Boxes are clipped to the image;
what is empty then is no box. Padding is NaN.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.components import boxes_around

from .inputs import check_mask, padded_boxes
from .rescoring import ScoredBatch

Region = Literal["auto", "mask", "boxes", "shortcut_mask"]
REGIONS: tuple[Region, ...] = get_args(Region)


class NoRegionError(ValueError):
    """Error for a batch without the requested annotation."""


@contextmanager
def regions_for(metric: str, annotations: Mapping[str, Any]) -> Iterator[None]:
    """Turn the error for a batch without a region into one that names the metric which asked for it."""
    try:
        yield
    except NoRegionError as error:
        regions = [name for name in REGIONS if annotations.get(name) is not None]
        raise ValueError(
            f"expected {error.args[0]} in the batch for {metric}, got {regions or 'none'}; make batches dicts that "
            "carry them, as ShapesDataModule(annotations=True) does, or pass them to update."
        ) from error


def pixels(
    annotations: Mapping[str, Any], region: Region, size: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """Return U (B, *spatial) as booleans; "auto" is the mask if the batch has one, else the boxes.

    Args:
        annotations: name -> masks or boxes of a batch.
        region: which of them.
        size: (B, *spatial), of the maps.
        device: where to put the result; by default where the annotations are.
    """
    name = chosen(annotations, region, ("mask", "boxes"))
    if name == "boxes":
        _refuse_other_than_images(size)
        return inside(clipped(padded_boxes(annotations[name], size[0]).to(device=device), size[1:]), size[1:])
    return _booleans(name, annotations[name], size).to(device=device)


def pixels_of(scored: ScoredBatch, region: Region) -> Tensor:
    """Return U (B, *spatial) of a batch, on the device of the maps."""
    name, like = chosen(scored.annotations, region, ("mask", "boxes")), scored.like
    return scored.once_clean(("pixels", name), lambda: pixels(scored.annotations, name, like.shape, like.device))


def covering_pixels(scored: ScoredBatch, region: Region) -> Tensor:
    """Return pixels (B, *spatial) that cover U; "auto" is the box around it, which hides the outline of the object."""
    if region != "auto":
        return pixels_of(scored, region)
    size = scored.like.shape
    _refuse_other_than_images(size)
    return scored.once_clean("covering pixels", lambda: inside(boxes(scored, "auto"), size[1:]))


def ignored_pixels(scored: ScoredBatch) -> Tensor | None:
    """Return the pixels (B, *spatial) of a batch that count as neither object nor background; None if it names none."""
    mask, S = scored.annotations.get("ignore_mask"), scored.saliency
    return None if mask is None else _booleans("ignore_mask", mask, S.shape).to(S.device)


def boxes(scored: ScoredBatch, region: Region, clip: bool = True) -> Tensor:
    """Return the boxes (B, n, 4) of a batch; "auto" are the boxes if it has some, else the one around the mask."""
    name, like = chosen(scored.annotations, region, ("boxes", "mask")), scored.like
    _refuse_other_than_images(like.shape)
    if name != "boxes":
        return scored.once_clean(("box around", name), lambda: boxes_around(pixels_of(scored, name))[:, None])
    padded = padded_boxes(scored.annotations[name], len(like)).to(like.device)
    return clipped(padded, like.shape[1:]) if clip else padded


def maps(scored: ScoredBatch) -> Tensor:
    """Return the maps (B, H, W) of images in full precision; signals and volumes, which have no boxes, are refused."""
    _refuse_other_than_images(scored.saliency.shape)
    return full(scored.saliency)


def _refuse_other_than_images(size: Sequence[int]) -> None:
    if len(size) != 3:
        raise ValueError(
            f"expected saliency (B, H, W), where boxes and distances are, got {tuple(size)}; measure other maps "
            "with a mask by PointingGame(), EnergyPointingGame() or PixelF1()."
        )


def _booleans(name: str, mask: Any, size: Sequence[int]) -> Tensor:
    mask = check_mask(name, mask, size)
    return mask if mask.dtype == torch.bool else mask > 0


def chosen(annotations: Mapping[str, Any], region: Region, order: Sequence[Region]) -> Region:
    """Return the name of the annotation that `region` means."""
    wanted = order if region == "auto" else (region,)
    for name in wanted:
        if annotations.get(name) is not None:
            return name
    raise NoRegionError(" or ".join(map(repr, wanted)))  # `regions_for` says which metric asked


def clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return boxes (B, n, 4) within images of `size`; NaN where nothing is left."""
    H, W = size
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([W, H, W, H]))
    return inside.masked_fill(~(area(inside) > 0)[..., None], torch.nan)


def inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return the union (B, H, W) of boxes (B, n, 4) (1)."""
    H, W = size
    x, y = (torch.arange(n, device=boxes.device) + 0.5 for n in (W, H))
    U = torch.zeros(len(boxes), H, W, dtype=torch.bool, device=boxes.device)
    for box in boxes.unbind(1):
        x1, y1, x2, y2 = box[:, :, None].unbind(1)
        U |= ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None]
    return U


def area(boxes: Tensor, border: float = 0.0) -> Tensor:
    """Return the areas of boxes (..., 4) with sides longer by `border`; negative sides count as 0."""
    width, height = (boxes[..., i + 2] - boxes[..., i] + border for i in (0, 1))
    return width.clamp(min=0) * height.clamp(min=0)


def iou(box: Tensor, others: Tensor, areas: Tensor | None = None, border: float = 0.0) -> Tensor:
    """Return (2) of boxes (B, 4) and others (B, n, 4), (B, n); 0 where one is missing.

    Args:
        box: one per image.
        others: several per image.
        areas: of the others, where they are not what their sides say.
        border: by which all sides are longer.
    """
    ours = box[:, None]
    both = torch.cat([torch.maximum(ours, others)[..., :2], torch.minimum(ours, others)[..., 2:]], -1)
    common = area(both, border)
    all_of = area(ours, border) + (area(others, border) if areas is None else areas) - common
    return (common / all_of).nan_to_num(0, 0)


def rows_of(annotations: Mapping[str, Any], row: Tensor) -> dict[str, Any]:
    """Return the annotations of some images, which may be repeated."""
    return {
        name: value[row.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in row.tolist()]
        for name, value in annotations.items()
    }


def of_class(annotations: dict[str, Any], classes: Tensor) -> dict[str, Any]:
    """Return the boxes and masks of the class of each row alone, where `box_target` and `mask_target` name it."""
    selected = dict(annotations)
    boxes, names = selected.get("boxes"), selected.get("box_target")
    if isinstance(boxes, Tensor) and isinstance(names, Tensor):
        boxes, names = boxes.reshape(len(boxes), -1, 4), names.reshape(len(names), -1)
        named_all(boxes, names)
        other = (names.cpu() != classes.cpu()[:, None]).to(boxes.device)
        selected["boxes"] = boxes.float().masked_fill(other[..., None], torch.nan)
    elif boxes is not None and names is not None:  # one tensor for each image
        selected["boxes"] = []
        for rows, name, c in zip(boxes, names, classes.tolist()):
            rows, name = torch.as_tensor(rows).reshape(-1, 4), torch.as_tensor(name).reshape(-1)
            named_all(rows, name)
            selected["boxes"].append(rows[(name == c).to(rows.device)])
    if isinstance(selected.get("mask_target"), Tensor):
        selected["mask"] = selected["mask_target"] == classes.to(selected["mask_target"].device)[:, None, None]
    return selected


def named_all(boxes: Tensor, names: Tensor) -> None:
    """Refuse boxes (..., 4) of which not each has a class (...)."""
    if boxes.shape[:-1] != names.shape:
        raise ValueError(
            f"expected box_target {tuple(boxes.shape[:-1])}, the class of each box, got {tuple(names.shape)}."
        )
