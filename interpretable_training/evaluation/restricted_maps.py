"""Maps inside and outside of the object's box. Table of the box study in Zhang et al., Opti-CAM, CVIU 2024,
https://arxiv.org/abs/2301.07002

    inside  = S * 1[p in U]          (1)
    outside = S * (1 - 1[p in U])    (2)

S: map of a method in [0, 1], or 1 everywhere. U: union of the object's boxes. With the metrics of confidence they tell
how much of the decision lies on the object, and how much around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interpretable_training.attribution.core.base import (
    Attribution,
    explain_prepared,
    full,
    name_methods,
)
from interpretable_training.attribution.core.prepared_model import PreparedModel
from interpretable_training.attribution.core.targets import Resolved
from interpretable_training.metrics.core.base import described
from interpretable_training.metrics.core.regions import NoRegionError, Region, pixels
from interpretable_training.metrics.core.rescoring import in_unit_range


@dataclass(frozen=True)
class Restricted(Attribution):
    """Keep a method's map inside or outside of the object's region; for `evaluate` on batches with regions.

    >>> from interpretable_training.attribution import GradCAM
    >>> Restricted(GradCAM(), "outside").part
    'outside'

    Args:
        method: whose map; without one it is 1 everywhere, so that the region itself is the map.
        part: which part of the map stays.
        region: which annotation tells where the object is.
    """

    method: Attribution | None = None
    part: Literal["inside", "outside"] = "inside"
    region: Region = "boxes"

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        raise TypeError(
            "expected Restricted among the methods of evaluate, which knows the boxes of a batch, got it called alone; "
            "multiply the normalized map with the mask instead."
        )


@dataclass(frozen=True)
class AtRegion(Attribution):
    """`Restricted` for the images of one batch; U is NaN where an image has no region."""

    method: Attribution | None
    U: Tensor

    def __post_init__(self) -> None:
        """Check nothing: U is made by `evaluate`, and options that are NaN would be refused."""

    @property
    def final(self) -> bool:
        return True  # the largest value inside may be less than 1

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        S = None if self.method is None else self.method.attribute(prepared, images, target)
        return self.restrict(S)

    def restrict(self, S: Tensor | None) -> Tensor:
        """Return the part (B, H, W) of raw maps."""
        if self.method is None or S is None:
            return self.U
        return in_unit_range(self.method, full(S.detach())) * self.U  # (1), (2)


def at_regions(method: Attribution, images: Tensor, annotations: Mapping[str, Any]) -> Attribution:
    """Return the method itself, or what `Restricted` means for these images."""
    if not isinstance(method, Restricted):
        return method
    like = images.new_zeros(len(images), *images.shape[2:], dtype=torch.float32)
    try:
        U = pixels(annotations, method.region, like.shape, like.device)
    except NoRegionError as error:
        raise ValueError(
            f"expected {error.args[0]} in the batch for {described(method)}, got none; make batches dicts that carry "
            "them, as ShapesDataModule(annotations=True) does."
        ) from error
    part = (U if method.part == "inside" else ~U).to(like)
    return AtRegion(method.method, part.masked_fill(~U.flatten(1).any(1)[:, None, None], torch.nan))


def explain_regions(
    methods: Mapping[str, Attribution], prepared: PreparedModel, images: Tensor, target: Resolved
) -> dict[str, Tensor]:
    """Return raw maps of all methods; a method is explained once for the whole map and its parts."""
    plain = {name: method for name, method in methods.items() if not isinstance(method, AtRegion)}
    parts = {name: method for name, method in methods.items() if isinstance(method, AtRegion)}
    whole: dict[str, str | None] = {}  # part -> the name of what is explained for it
    for name, part in parts.items():
        equal = [other for other, method in plain.items() if same(method, part.method)]
        whole[name] = None if part.method is None else next(iter(equal), name)
        if part.method is not None and not equal:
            plain[name] = part.method
    maps = explain_prepared(plain, prepared, images, target) if plain else {}
    restricted = {name: part.restrict(maps.get(whole[name] or "")) for name, part in parts.items()}
    return {name: restricted[name] if name in parts else maps[name] for name in methods}


def same(a: Attribution, b: Attribution | None) -> bool:
    """Whether two methods make the same maps."""
    return a is b or (is_dataclass(a) and b is not None and described(a) == described(b))


def box_rows(
    methods: Attribution | Mapping[str, Attribution] | Sequence[Attribution], region: Region = "boxes"
) -> dict[str, Attribution]:
    """Return the rows of the study: the box and its complement alone, then each method whole, inside and outside.

    >>> from interpretable_training.attribution import GradCAM
    >>> list(box_rows(GradCAM()))
    ['box', 'outside the box', 'gradcam', 'gradcam inside', 'gradcam outside']
    """
    rows: dict[str, Attribution] = {
        "box": Restricted(None, "inside", region),
        "outside the box": Restricted(None, "outside", region),
    }
    for name, method in name_methods(methods).items():
        rows |= {name: method}
        rows |= {f"{name} inside": Restricted(method, "inside", region)}
        rows |= {f"{name} outside": Restricted(method, "outside", region)}
    return rows
