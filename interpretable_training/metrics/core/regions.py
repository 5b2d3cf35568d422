"""Where the object is, as pixels and as boxes, whichever of them a batch carries.

    U = union of the boxes, or the mask               (1)
    IoU(a, b) = |a and b| / (|a| + |b| - |a and b|)    (2)

A box is x1, y1, x2, y2 with x2, y2 just outside; a pixel lies in it if its middle does. Boxes are clipped to the image;
what is empty then is no box. Padding is NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interpretable_training.attribution.core.base import full

from .components import tight_boxes
from .rescoring import ScoredBatch

Region = Literal["auto", "mask", "boxes", "shortcut_mask"]
REGIONS: tuple[Region, ...] = get_args(Region)


class NoRegionError(ValueError):
    """The batch carries no annotation that is asked for."""


def pixels(scored: ScoredBatch, region: Region) -> Tensor:
    """U (B, H, W) of a batch; "auto" is the mask where there is one, else the boxes."""
    name = chosen(scored.annotations, region, ("mask", "boxes"))

    def compute() -> Tensor:
        if name == "boxes":
            size = maps(scored).shape[1:]
            return inside(clipped(padded(scored), size), size)
        return checked_mask(name, scored)

    return scored.once_clean(("pixels", name), compute)


def boxes(scored: ScoredBatch, region: Region, clip: bool = True) -> Tensor:
    """Boxes (B, n, 4) of a batch; "auto" are the boxes where there are some, else the one around the mask."""
    name = chosen(scored.annotations, region, ("boxes", "mask"))
    size = maps(scored).shape[1:]
    if name != "boxes":
        return scored.once_clean(("box around", name), lambda: tight_boxes(pixels(scored, name))[:, None])
    found = padded(scored)
    return clipped(found, size) if clip else found


def maps(scored: ScoredBatch) -> Tensor:
    """The maps (B, H, W) of images, in full precision; signals and volumes have no boxes."""
    S = scored.saliency
    if S.ndim != 3:
        raise ValueError(
            f"expected saliency (B, H, W), where boxes and distances are, got {tuple(S.shape)}; measure other maps "
            "with a mask by PointingGame(), EnergyPointingGame() or PixelF1()."
        )
    return full(S)


def chosen(annotations: Mapping[str, Any], region: Region, order: Sequence[Region]) -> Region:
    """The annotation that is meant."""
    wanted = order if region == "auto" else (region,)
    for name in wanted:
        if annotations.get(name) is not None:
            return name
    raise NoRegionError(" or ".join(map(repr, wanted)))  # `RegionMetric` says which metric asked


def checked_mask(name: str, scored: ScoredBatch) -> Tensor:
    """A mask (B, H, W) of a batch as booleans, on the device of the maps."""
    mask, shape = scored.annotations[name], tuple(scored.saliency.shape)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        came = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"expected {name} {shape}, one per map at its resolution, got {came}.")
    mask = mask.to(scored.saliency.device)
    return mask if mask.dtype == torch.bool else mask > 0


def padded(scored: ScoredBatch) -> Tensor:
    """The boxes of a batch as (B, n, 4), where n is at least 1."""
    given, like = scored.annotations["boxes"], scored.saliency
    wanted = f"expected boxes ({len(like)}, n, 4), padded with NaN, or a list of {len(like)} tensors (n, 4), got"
    if not isinstance(given, Tensor):
        listed = [torch.as_tensor(rows, dtype=torch.float32) for rows in given]
        wrong = [tuple(rows.shape) for rows in listed if rows.numel() and rows.shape[-1] != 4]
        if wrong or len(listed) != len(like):
            raise ValueError(f"{wanted} {len(listed)}{f' with one of {wrong[0]}' if wrong else ''}.")
        rows = [rows.reshape(-1, 4) for rows in listed]
        given = pad_sequence(rows, batch_first=True, padding_value=torch.nan) if rows else torch.zeros(0, 1, 4)
    given = given[:, None] if given.ndim == 2 else given
    if given.ndim != 3 or given.shape[2] != 4 or len(given) != len(like):
        raise ValueError(f"{wanted} {tuple(given.shape)}.")
    given = given.to(like.device, torch.float32)
    return given if given.shape[1] else given.new_full((len(given), 1, 4), torch.nan)


def clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (B, n, 4) within images of `size`; NaN where nothing is left."""
    H, W = size
    found = boxes.clamp(min=0).minimum(boxes.new_tensor([W, H, W, H]))
    return found.masked_fill(~(area(found) > 0)[..., None], torch.nan)


def inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The union (B, H, W) of boxes (B, n, 4) (1)."""
    H, W = size
    x, y = (torch.arange(n, device=boxes.device) + 0.5 for n in (W, H))
    U = torch.zeros(len(boxes), H, W, dtype=torch.bool, device=boxes.device)
    for box in boxes.unbind(1):
        x1, y1, x2, y2 = box[:, :, None].unbind(1)
        U |= ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None]
    return U


def area(boxes: Tensor, border: float = 0.0) -> Tensor:
    """Of boxes (..., 4), whose sides are longer by `border`; negative sides count as 0."""
    width, height = (boxes[..., i + 2] - boxes[..., i] + border for i in (0, 1))
    return width.clamp(min=0) * height.clamp(min=0)


def iou(box: Tensor, others: Tensor, areas: Tensor | None = None, border: float = 0.0) -> Tensor:
    """(2) of boxes (B, 4) and others (B, n, 4), (B, n); 0 where one is not there.

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
    """The annotations of some images, which may be repeated."""
    return {
        name: value[row.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in row.tolist()]
        for name, value in annotations.items()
    }


def of_class(annotations: dict[str, Any], classes: Tensor) -> dict[str, Any]:
    """The boxes and masks of the class of each row alone, where `box_target` and `mask_target` tell it."""
    found = dict(annotations)
    boxes, names = found.get("boxes"), found.get("box_target")
    if isinstance(boxes, Tensor) and isinstance(names, Tensor):
        boxes, names = boxes.reshape(len(boxes), -1, 4), names.reshape(len(names), -1)
        named_all(boxes, names)
        other = (names.cpu() != classes.cpu()[:, None]).to(boxes.device)
        found["boxes"] = boxes.float().masked_fill(other[..., None], torch.nan)
    elif boxes is not None and names is not None:  # one tensor for each image
        found["boxes"] = []
        for rows, name, c in zip(boxes, names, classes.tolist()):
            rows, name = torch.as_tensor(rows).reshape(-1, 4), torch.as_tensor(name).reshape(-1)
            named_all(rows, name)
            found["boxes"].append(rows[(name == c).to(rows.device)])
    if isinstance(found.get("mask_target"), Tensor):
        found["mask"] = found["mask_target"] == classes.to(found["mask_target"].device)[:, None, None]
    return found


def named_all(boxes: Tensor, names: Tensor) -> None:
    """Refuse boxes (..., 4) of which not each has a class (...)."""
    if boxes.shape[:-1] != names.shape:
        raise ValueError(
            f"expected box_target {tuple(boxes.shape[:-1])}, the class of each box, got {tuple(names.shape)}."
        )
