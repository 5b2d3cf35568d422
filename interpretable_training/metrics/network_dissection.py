"""IoU of units and concepts. Bau et al., Network Dissection, CVPR 2017, https://arxiv.org/abs/1704.05796

    M[k]      = 1[up(A[k]) > T[k]],  P(A[k] > T[k]) = 0.005 over all images and places      (1)
    IoU[k, c] = sum over images of |M[k] and L[c]| / sum over images of |M[k] or L[c]|       (2)

A: activations of a layer. up: to the size of the masks. L[c]: pixels of concept c, of the images that carry
annotations. Sums come before the division: an image where the concept is small counts little.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from interpretable_training.attribution.core.auto_layer import choose_layer
from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.capture import capture
from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.map_operations import one_of, resize
from interpretable_training.attribution.core.precision import on_device
from interpretable_training.attribution.core.prepared_model import Output, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.ranges import Range, check_ranges
from interpretable_training.attribution.core.targets import as_classes
from interpretable_training.batches.source import BatchSource, Split

from .core.base import same_passport
from .core.inputs import check_activations, refuse_storage, refuse_values
from .core.regions import REGIONS, NoRegionError, Region, of_class, pixels, rows_of
from .core.rescoring import only_images


class UnitIoU(Metric):
    """IoU of each unit with the concept that fits it best (2), averaged over units, in [0, 1].

    `measure_units` fills it for a layer and annotated images.

    >>> metric = UnitIoU(threshold=0.5)
    >>> metric.update(torch.eye(4).view(1, 1, 4, 4), mask=torch.eye(4)[None] > 0)
    >>> metric.compute()
    tensor(1.)

    Args:
        threshold: T, one per unit (K,), as `unit_thresholds` finds them, or one for all.
        num_concepts: how many concepts there are.
        detector: from which IoU on a unit counts as a detector of its best concept.
    """

    higher_is_better = True
    full_state_update = False
    is_differentiable = False
    intersection: Tensor
    unit_area: Tensor
    concept_area: Tensor

    def __init__(self, threshold: Tensor | float, num_concepts: int = 1, detector: float = 0.04, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.num_concepts, self.detector = _thresholds(threshold), num_concepts, detector
        if isinstance(num_concepts, bool) or not isinstance(num_concepts, int) or num_concepts < 1:
            raise ValueError(f"expected num_concepts as a whole number of at least 1, got {num_concepts!r:.100}.")
        if not Range(0, 1).holds(detector):
            raise ValueError(f"expected detector as a {Range(0, 1)}, got {detector!r:.100}.")
        units = self.threshold.numel()
        zeros = {"intersection": (units, num_concepts), "unit_area": (units, 1), "concept_area": (1, num_concepts)}
        for name, shape in zeros.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        digest = bytes.fromhex(checksum(self.threshold))  # a collection takes metrics of equal states for one
        self.add_state("facts", torch.tensor(list(digest)), dist_reduce_fx="max")

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._apply(on_device(fn), *args, **kwargs)

    def update(self, A: Tensor, mask: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            A: activations (B, K, h, w).
            mask: pixels of the concepts (B, C, H, W); or those (B, H, W) of the concept that `target` names.
            target: concept of each image (B,); by default the only one there is.
        """
        A = full(check_activations(A))
        T = self.threshold.to(A.device).view(1, -1, 1, 1)
        if T.shape[1] not in (1, A.shape[1]):
            raise ValueError(f"expected thresholds of {A.shape[1]} units, got {T.shape[1]}.")
        intersection, unit_area, concept_area = self.intersection, self.unit_area, self.concept_area
        for unit, (concept, L) in zip(A, self._concepts(mask, target, len(A))):  # K maps of full size are large
            if not len(concept):
                continue
            concept, L = concept.to(A.device), L.flatten(1).to(A)  # (n,), (n, HW)
            M = (resize(unit[None], mask.shape[-2:])[0] > T[0]).flatten(1).to(A)  # (1), (K, HW)
            both = M.new_zeros(len(M), self.num_concepts).index_copy(1, concept, M @ L.T)
            intersection = intersection + both.to(intersection)
            unit_area = unit_area + M.sum(1, keepdim=True).to(unit_area)
            concept_area = concept_area.index_add(1, concept.to(concept_area.device), L.sum(1)[None].to(concept_area))
        self.intersection, self.unit_area, self.concept_area = intersection, unit_area, concept_area

    def _concepts(self, mask: Tensor, target: Tensor | None, B: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the concepts (n,) of each image and their pixels (n, H, W)."""
        C = self.num_concepts
        if not isinstance(mask, Tensor):
            raise TypeError(f"expected mask ({B}, H, W) or ({B}, {C}, H, W) as a tensor, got {type(mask).__name__}.")
        refuse_storage("mask", mask)
        refuse_values("mask", mask)
        if not (mask.ndim == 3 and len(mask) == B) and not (mask.ndim == 4 and mask.shape[:2] == (B, C)):
            raise ValueError(f"expected mask ({B}, H, W) or ({B}, {C}, H, W), got {tuple(mask.shape)}.")
        if mask.ndim == 3 and target is None and C > 1:
            raise ValueError(f"expected target= with the concept of each mask, one of {C}, got none.")
        of_one = torch.zeros(B, dtype=torch.long) if target is None else as_classes(target, mask).cpu()
        if mask.ndim == 3 and (of_one.shape != (B,) or bool(((of_one < 0) | (of_one >= C)).any())):
            raise ValueError(f"expected target ({B},) with numbers from 0 to {C - 1}, got {of_one.tolist()}.")
        for i, concepts in enumerate(mask > 0):
            if mask.ndim == 4:
                present = concepts.flatten(1).any(1).nonzero()[:, 0]
                yield present, concepts[present]
            else:
                count = int(concepts.any())
                yield of_one[i : i + 1][:count], concepts[None][:count]

    def iou(self) -> Tensor:
        """Return (2), (K, C); 0 where neither is anywhere."""
        union = self.unit_area + self.concept_area - self.intersection
        return (self.intersection / union.masked_fill(union == 0, 1)).float()

    def detectors(self) -> Tensor:
        """Return the concept (K,) of each unit that detects one, else -1."""
        best, concept = self.iou().max(1)
        return torch.where(best > self.detector, concept, -1)

    def compute(self) -> Tensor:
        return self.iou().amax(1).mean()

    def passport(self) -> dict[str, str | float]:
        """Return all facts that decide what the number means."""
        return {
            "metric": type(self).__name__,
            "formula": "mean over units of max over concepts of sum |M and L| / sum |M or L|",
            "direction": "higher is better",
            "range": "0 to 1",
            "unit": "ratio",
            "detector": self.detector,
            "concepts": self.num_concepts,
            "thresholds": " ".join(f"{float(t):.6g}" for t in self.threshold.flatten()[:8]),
            "checksum of thresholds": checksum(self.threshold),
        }

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric of the same passport."""
        if isinstance(incoming_state, UnitIoU):
            same_passport(self.passport(), incoming_state.passport())
        super().merge_state(incoming_state)


def unit_thresholds(batches: Iterable[Tensor], share: float = 0.005) -> Tensor:
    """Return T (K,) of activations (B, K, h, w): each unit is above it at this share of all places of all images.

    The activations are kept, at the layer's resolution, until all are there.

    >>> unit_thresholds([torch.arange(100.0).view(1, 1, 10, 10)], share=0.05)
    tensor([94.])
    """
    _check_share(share)
    parts = [full(check_activations(A).detach()).transpose(0, 1).flatten(1) for A in batches]
    if len({len(part) for part in parts}) != 1:
        raise ValueError(
            f"expected activations of the same units in at least one batch, got {[len(part) for part in parts]} units."
        )
    places = torch.cat(parts, 1)  # (K, N)
    above = int(share * places.shape[1] + 1e-6)  # rounding aside
    if above == 0:
        raise ValueError(
            f"expected at least {math.ceil(1 / share - 1e-6)} places, of which a share of {share:g} is one, got "
            f"{places.shape[1]}; pass more images or a larger share."
        )
    return places.sort(1, descending=True).values[:, above]


def _thresholds(given: Any) -> Tensor:
    """Return one finite threshold, or one per unit (K,), as a tensor."""
    try:
        T = torch.as_tensor(given)
        usable = not T.is_complex() and T.numel() > 0 and T.ndim < 2 and bool(T.isfinite().all())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        usable = False
    if not usable:
        raise ValueError(f"expected threshold as a finite number, or one per unit (K,), got {given!r:.100}.")
    return T


def _check_share(share: float) -> None:
    check_ranges("unit_thresholds", {"share": share})
    if share == 1:
        raise ValueError("expected share between 0 and 1, got 1.")


@same_generators()
def measure_units(
    model: nn.Module,
    data: Any,
    layer: str = "auto",
    *,
    region: Region = "auto",
    share: float = 0.005,
    max_images: int | None = None,
    split: Split = "val",
    output: Output = None,
    seed: int = 0,
) -> UnitIoU:
    """Measure `UnitIoU` of a layer on annotated images; their classes are the concepts, their objects the pixels.

    Of images with several classes, targets (B, N), each class has what `box_target` or `mask_target` tell.
    The layer's activations and the masks are kept until all are there, since (1) needs all images before (2) begins.

    >>> batch = {"image": images, "target": target, "mask": images[:, 0] > 0}
    >>> measure_units(network, [batch], share=0.05).iou().shape
    torch.Size([8, 2])

    Args:
        model: any classifier; it stays as it is.
        data: as `evaluate` takes it, with masks or boxes.
        layer: its dotted name; "auto" is the last one with a grid.
        region: which annotation is L, see `RegionMetric`.
        share: of all places, above T.
        max_images: how many images, chosen by the seed; by default all.
        split: of a data module.
        output: which part of the model's output are the logits.
        seed: of the choice of images.
    """
    _check_share(share)
    check_ranges("measure_units", {"max_images": max_images, "seed": seed}, ["max_images"])
    one_of("region", region, *REGIONS)
    if not isinstance(layer, str):
        raise TypeError(f"expected layer as 'auto' or the dotted name of a module, got {layer!r:.100}.")
    torch.default_generator.manual_seed(seed)  # what a loader draws is the same every time
    device = next((p.device for p in unwrap(model).parameters()), torch.device("cpu"))
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with prepare_model(model, output) as prepared, torch.no_grad():
        source = BatchSource(data, max_images, split, seed)
        for _, _, images, target, annotations in source.read_annotated(lambda n: True):
            image, concept = concepts_of(target, images)
            images = prepare(prepared, only_images(images.to(device)))
            name = choose_layer(prepared, images, 0) if layer == "auto" else layer
            A = capture(prepared, images, [name], gradient=False).A[name].cpu()
            batches.append((A, image, concept, concept_pixels(annotations, image, concept, images.shape[2:], region)))
    if not batches:
        raise ValueError("expected at least one image, got none; is the data set or the loader empty?")
    num_concepts = 1 + max((int(c) for _, _, concept, _ in batches for c in concept), default=0)
    metric = UnitIoU(unit_thresholds([A for A, _, _, _ in batches], share), num_concepts)
    for A, image, concept, L in batches:
        for i, a in enumerate(A):
            mask = torch.zeros(1, num_concepts, *L.shape[1:], dtype=torch.bool)
            mask[0, concept[image == i]] = L[image == i]
            metric.update(a[None], mask)
    return metric


def concepts_of(target: Tensor | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return which image (R,) holds which class (R,), one or several of them."""
    if target is None:
        raise ValueError("expected batches with a target, which is the concept of the image, got none.")
    if target.ndim == 2:
        image, concept = (target.cpu() > 0.5).nonzero(as_tuple=True)
        return image, concept
    if target.ndim != 1 or target.is_floating_point():
        raise ValueError(
            f"expected targets ({len(images)},) of class numbers or ({len(images)}, N) of zeros and ones, got "
            f"{tuple(target.shape)} of {target.dtype}."
        )
    return torch.arange(len(target)), target.cpu()


def concept_pixels(
    annotations: dict[str, Any], image: Tensor, concept: Tensor, size: Sequence[int], region: Region
) -> Tensor:
    """Return the pixels (R, H, W) of each row's class."""
    rows = rows_of(annotations, image)
    try:
        return pixels(of_class(rows, concept), region, (len(image), *size)).cpu()
    except NoRegionError as error:
        raise ValueError(
            f"expected {error.args[0]} in the batch for UnitIoU, got {sorted(annotations) or 'none'}; make batches "
            "dicts that carry them, as ShapesDataModule(annotations=True) does."
        ) from error
