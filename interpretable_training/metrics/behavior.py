"""Accuracy on images of which a part is replaced: does the network need the object, or does the background suffice?

    x_object[i]     = U[i] x[i] + (1 - U[i]) r(x[i])                 (1)
    x_background[i] = (1 - V[i]) x[i] + V[i] r(x[i])                 (2)
    x_other[i]      = U[i] x[i] + (1 - U[i]) x_background[j]         (3)
    x_top[i]        = (1 - T[i]) x[i] + T[i] r(x[i])                 (4)
    accuracy        = 100/N * sum over i of 1[argmax y(x'[i]) = c[i]],  x' one of them, or x itself    (5)

U: pixels of the object. V: the box around it, so that what is filled does not keep its outline. T: the most salient
pixels. r: what replaces pixels. j: the next image of the batch, from i on and around, whose class is another. c: the
class that is explained; explain the labels. (1)-(3): Xiao et al., Noise or Signal, ICLR 2021,
https://arxiv.org/abs/2006.09994, as Only-FG, Only-BG and Mixed-Next. (4): as one point of the curve of ROAD, Rong et
al., ICML 2022, https://arxiv.org/abs/2202.00449.
Differs from the paper: (3) takes any other class instead of the next one by number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.targets import Target

from .core.base import Fact, ImageMetric, RescoringMetric, as_tuple
from .core.filling import Fill, Filling
from .core.perturbation import rank_pixels
from .core.regions import REGIONS, Region, covering_pixels, pixels_of, regions_for
from .core.rescoring import ScoredBatch, kind_index

OBJECT = "mask, else boxes"
COVER = "boxes, else the box around the mask"


class PlainAccuracy(ImageMetric):
    """Percentage of the images, as they are, whose predicted class is the label (5); to compare the others with.

    >>> PlainAccuracy().measure(model=network, images=images, target="pred").tolist()
    [100.0, 100.0, 100.0, 100.0]

    Args:
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    needs_classes = higher_is_better = True
    formula = "1[argmax y(x) = c]"
    reads_maps = False

    def __init__(self, chunk_size: int | None = None, **kwargs: Any) -> None:
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    def update(self, model: nn.Module | None = None, images: Tensor | None = None, target: Target = None) -> None:
        """Add a batch: images (B, C, H, W) and classes (B,)."""
        self.collect(model=model, images=images, target=target)

    def values(self, scored: ScoredBatch) -> Tensor:
        classes_of(scored)
        return 100 * scored.clean_scores()[:, kind_index("accuracy")]  # (5)


class RegionAccuracy(ImageMetric):
    """Accuracy on images that are changed where the object is, or everywhere else; maps are not read.

    Images without an annotated region, or without a pixel outside of it, are left out and counted.

    Args:
        region: which annotation tells where the object is: the "mask", the "boxes" or the "shortcut_mask", a planted
            cue, which takes the place of the object; "auto" is the mask before the boxes for what stays, and the boxes
            before the box around the mask for what is replaced.
        substrate: r: "linear" is imputed from the neighbors, as in ROAD; the others are those of `AOPC`.
        mean: the normalization's, which the substrate "black" needs; with `std`.
        std: see `mean`.
        seed: of the "uniform" substrate.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    left_out = "which have no annotated region, or nothing outside of it, or whose scores are not numbers"
    why_no_number = "have no annotated region, or nothing outside of it, or no scores of numbers, and are"
    needs_classes, reads_maps = True, False

    def __init__(
        self,
        region: Region = "auto",
        substrate: Fill | Tensor = "linear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_of("region", region, *REGIONS)
        self.region: Region = region
        self.filling = Filling(substrate, as_tuple(mean), as_tuple(std), seed)
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    @property
    def wants_high(self) -> bool | None:
        return bool(self.higher_is_better) != (self.region == "shortcut_mask")  # a cue should decide nothing

    def update(
        self,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        target: Target = None,
        mask: Tensor | None = None,
        boxes: Any = None,
        shortcut_mask: Tensor | None = None,
    ) -> None:
        """Add a batch: images (B, C, H, W), classes (B,) and where the objects are, as for `PointingGame`."""
        self.collect(model=model, images=images, target=target, mask=mask, boxes=boxes, shortcut_mask=shortcut_mask)

    def rows(self, scored: ScoredBatch) -> Tensor:
        with regions_for(type(self).__name__, scored.annotations):
            return super().rows(scored)

    def accuracy(self, scored: ScoredBatch, make: Callable[[slice], Tensor], known: Tensor) -> Tensor:
        """Return 100 or 0 for each image (B,) that `make` changes, NaN where not `known`; once for all methods."""
        classes, x = classes_of(scored), scored.images
        rows = torch.arange(len(classes), device=x.device)
        key = (type(self).__name__, self.region, *self.filling.key)
        scores = scored.once_clean(key, lambda: scored.rescore(make, rows))
        return (100 * scores[:, kind_index("accuracy")]).masked_fill(~(known & finite(x)), torch.nan)  # (5)

    def backgrounds(self, scored: ScoredBatch) -> tuple[Tensor, Tensor]:
        """Return the images without their objects (2), and whether there is an object and something else (B,)."""
        x, V = scored.images, covering_pixels(scored, self.region)
        known = partly(V)
        gone = V & known.view(-1, *[1] * (V.ndim - 1))
        key = ("backgrounds", self.region, *self.filling.key)
        return scored.once_clean(key, lambda: self.filling(x, gone)), known  # (2)


class ObjectAccuracy(RegionAccuracy):
    """Accuracy with the object alone, all else replaced (1); with `region="shortcut_mask"` with the cue alone.

    >>> mask = torch.eye(16).expand(4, 16, 16) > 0
    >>> ObjectAccuracy().measure(model=network, images=images, target=target, mask=mask).shape
    torch.Size([4])

    Args:
        region: see `RegionAccuracy`.
        substrate: see `RegionAccuracy`; black, as in the paper, is the mean color where `mean` and `std` are unknown.
    """

    higher_is_better = True
    formula = "1[argmax y(U x + (1 - U) r) = c]"

    def __init__(self, region: Region = "auto", substrate: Fill | Tensor = "black", **kwargs: Any) -> None:
        super().__init__(region, substrate, **kwargs)

    def options(self) -> dict[str, Fact]:
        return {"object": OBJECT if self.region == "auto" else self.region, **self.filling.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        x, U = scored.images, pixels_of(scored, self.region)
        known = partly(U)
        gone = ~U & known.view(-1, *[1] * (U.ndim - 1))
        return self.accuracy(scored, lambda part: self.filling(x[part], gone[part]), known)  # (1)


class BackgroundAccuracy(RegionAccuracy):
    """Accuracy with the background alone, the object replaced (2); with `region="shortcut_mask"` without the cue.

    A network that decides by the object alone reaches chance: 100 over the number of classes, if they are balanced.

    >>> mask = torch.eye(16).expand(4, 16, 16) > 0
    >>> BackgroundAccuracy("mask").measure(model=network, images=images, target=target, mask=mask).shape
    torch.Size([4])
    """

    higher_is_better = False
    formula = "1[argmax y((1 - V) x + V r) = c]"

    def options(self) -> dict[str, Fact]:
        return {"replaced": COVER if self.region == "auto" else self.region, **self.filling.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        x, known = self.backgrounds(scored)
        return self.accuracy(scored, lambda part: x[part], known)


class OtherBackgroundAccuracy(RegionAccuracy):
    """Accuracy with the object on the background of another image of the batch, of another class (3).

    The other image's own object is replaced. The batches decide which image that is. Images of batches of one class
    are left out and counted, so batches have to mix classes.

    >>> mask = torch.eye(16).expand(4, 16, 16) > 0
    >>> OtherBackgroundAccuracy("mask").measure(model=network, images=images, target=target, mask=mask).shape
    torch.Size([4])
    """

    higher_is_better = True
    formula = "1[argmax y(U x + (1 - U) b) = c], b: background of the next image of another class in the batch"
    left_out = (
        f"which have no image of another class in their batch, {RegionAccuracy.left_out.removeprefix('which have ')}"
    )
    why_no_number = (
        f"have no image of another class in their batch, {RegionAccuracy.why_no_number.removeprefix('have ')}"
    )

    def options(self) -> dict[str, Fact]:
        auto = self.region == "auto"
        places: dict[str, Fact] = {"object": OBJECT, "replaced": COVER} if auto else {"object": self.region}
        return {**places, **self.filling.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        x, U = scored.images, pixels_of(scored, self.region)
        b, known = self.backgrounds(scored)
        j, has_donor = donors(classes_of(scored), known & finite(x))
        return self.accuracy(
            scored,
            lambda part: torch.where(U[part][:, None], x[part], b[j[part]]),  # (3)
            partly(U) & has_donor,
        )


class TopReplacedAccuracy(RescoringMetric):
    """Accuracy with the most salient pixels of each image replaced (4); needs no annotation.

    A fall from `PlainAccuracy` shows that the network needs what the map shows, be it the object or a cue.

    >>> TopReplacedAccuracy(20).measure(model=network, images=images, saliency=saliency, target=target).shape
    torch.Size([4])

    Args:
        topk: percentage of the pixels that is replaced.
        substrate: r: "linear" is imputed from the neighbors, as in ROAD; the others are those of `AOPC`.
        mean: the normalization's, which the substrate "black" needs; with `std`.
        std: see `mean`.
        seed: of the "uniform" substrate.
        chunk_size: images per pass; by default what suits the device and the image size.
    """

    needs_classes, higher_is_better = True, False
    formula = "1[argmax y((1 - T) x + T r) = c], T: the highest pixels of S, of equals the first"

    def __init__(
        self,
        topk: float = 10.0,
        substrate: Fill | Tensor = "linear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.topk, self.filling = topk, Filling(substrate, as_tuple(mean), as_tuple(std), seed)
        self.chunk_size = chunk_size
        super().__init__(**kwargs)

    def options(self) -> dict[str, Fact]:
        return {"topk": self.topk, **self.filling.facts()}

    def values(self, scored: ScoredBatch) -> Tensor:
        x, S = scored.images, scored.saliency
        pixels = S[0].numel()
        count = round(self.topk / 100 * pixels)
        if not 0 < count < pixels:
            raise ValueError(
                f"expected topk of which some of the {pixels} pixels are replaced and not all, got {self.topk:g} "
                f"percent, {count} pixels; pass another topk."
            )

        def compute() -> Tensor:
            classes, T = classes_of(scored), rank_pixels(S) < count
            rows = torch.arange(len(classes), device=x.device)
            return scored.rescore(lambda part: self.filling(x[part], T[part]), rows)  # (4)

        scores = scored.once(("top replaced", count, *self.filling.key), compute)
        return (100 * scores[:, kind_index("accuracy")]).masked_fill(~finite(x), torch.nan)  # (5)


def classes_of(scored: ScoredBatch) -> Tensor:
    """Return the class of each image (B,); refuse a function of the logits, which names none."""
    if not isinstance(scored.target, Tensor):
        raise TypeError("expected target as classes (B,) for an accuracy, got a function; pass the labels.")
    return scored.target


def finite(images: Tensor) -> Tensor:
    """Return whether all numbers of each image are finite, (B,)."""
    return images.flatten(1).isfinite().all(1)


def partly(pixels: Tensor) -> Tensor:
    """Return whether some pixels (B, *spatial) of each image are in the region and some are not, (B,)."""
    inside = pixels.flatten(1)
    return inside.any(1) & ~inside.all(1)


def donors(classes: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each image the next usable one of another class, from it on and around, and whether there is one."""
    i = torch.arange(len(classes), device=classes.device)
    fits = usable & (classes != classes[:, None])  # (B, B)
    ahead = ((i - i[:, None]) % len(i)).masked_fill(~fits, len(i))
    return ahead.argmin(1), fits.any(1)
