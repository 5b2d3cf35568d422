"""Which units see a concept. Bau et al., Network Dissection, CVPR 2017, https://arxiv.org/abs/1704.05796

    M[k]      = 1[up(A[k]) > T[k]],  P(A[k] > T[k]) = 0.005 over all images and places      (1)
    IoU[k, c] = sum over images of |M[k] and L[c]| / sum over images of |M[k] or L[c]|       (2)

A: activations of a layer. up: to the size of the masks. L[c]: pixels of concept c, of the images that carry
annotations. Sums come before the division: an image where the concept is small counts little.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from interpretable_training.attribution.capture import capture
from interpretable_training.attribution.choose import choose_layer
from interpretable_training.attribution.maps import resize
from interpretable_training.attribution.observe import Output, observe, prepare

from .evidence import Evidence
from .feed import Feed, Split
from .regions import Region, of_class, pixels


class UnitIoU(Metric):
    """How well the best concept of each unit fits it (2), the mean over units, in [0, 1].

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
        self.threshold, self.num_concepts, self.detector = torch.as_tensor(threshold), num_concepts, detector
        units = self.threshold.numel()
        zeros = {"intersection": (units, num_concepts), "unit_area": (units, 1), "concept_area": (1, num_concepts)}
        for name, shape in zeros.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, A: Tensor, mask: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            A: activations (B, K, h, w).
            mask: pixels of the concepts (B, C, H, W); or those (B, H, W) of the concept that `target` names.
            target: concept of each image (B,); by default the only one there is.
        """
        mask = self._concepts(mask > 0, target, len(A))
        annotated = mask.flatten(1).any(1)
        L = mask[annotated].flatten(2).to(A.device, torch.float32)  # (B, C, HW)
        T = self.threshold.to(A).view(1, -1, 1, 1)
        if T.shape[1] not in (1, A.shape[1]):
            raise ValueError(f"expected thresholds of {A.shape[1]} units, got {T.shape[1]}.")
        for unit, concepts in zip(A[annotated], L):  # one image at a time: K maps of full size are large
            M = (resize(unit[None], mask.shape[2:])[0] > T[0]).flatten(1).float()  # (1), (K, HW)
            self.intersection = self.intersection + (M @ concepts.T).to(self.intersection)
            self.unit_area = self.unit_area + M.sum(1, keepdim=True).to(self.unit_area)
        self.concept_area = self.concept_area + L.sum((0, 2)).to(self.concept_area)

    def _concepts(self, mask: Tensor, target: Tensor | None, B: int) -> Tensor:
        if mask.ndim == 3:
            concept = torch.zeros(B, dtype=torch.long) if target is None else target.cpu()
            if self.num_concepts > 1 and target is None:
                raise ValueError(
                    f"expected target= with the concept of each mask, one of {self.num_concepts}, got none."
                )
            chosen = concept[:, None] == torch.arange(self.num_concepts)
            mask = mask[:, None] & chosen[:, :, None, None].to(mask.device)
        if mask.ndim != 4 or mask.shape[:2] != (B, self.num_concepts):
            raise ValueError(f"expected mask ({B}, H, W) or ({B}, {self.num_concepts}, H, W), got {tuple(mask.shape)}.")
        return mask

    def iou(self) -> Tensor:
        """(2), (K, C); 0 where neither is anywhere."""
        union = self.unit_area + self.concept_area - self.intersection
        return (self.intersection / union.masked_fill(union == 0, 1)).float()

    def detectors(self) -> Tensor:
        """The concept (K,) of each unit that detects one, else -1."""
        best, concept = self.iou().max(1)
        return torch.where(best > self.detector, concept, -1)

    def compute(self) -> Tensor:
        return self.iou().amax(1).mean()

    def passport(self) -> dict[str, str | float]:
        """Everything that decides what the number means."""
        return {
            "metric": type(self).__name__,
            "formula": "mean over units of max over concepts of sum |M and L| / sum |M or L|",
            "direction": "higher is better",
            "range": "0 to 1",
            "unit": "ratio",
            "detector": self.detector,
            "concepts": self.num_concepts,
            "thresholds": " ".join(f"{float(t):.6g}" for t in self.threshold.flatten()[:8]),
        }


def unit_thresholds(batches: Iterable[Tensor], share: float = 0.005) -> Tensor:
    """T (K,) of activations (B, K, h, w): each unit is above it at this share of all places of all images.

    The activations are kept, at the layer's resolution, until all are there.
    """
    kept = torch.cat([A.detach().transpose(0, 1).flatten(1) for A in batches], 1)  # (K, N)
    above = int(share * kept.shape[1])
    return kept.sort(1, descending=True).values[:, above]


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
    """`UnitIoU` of a layer on annotated images; the classes of the images are the concepts, their objects the pixels.

    The layer's activations and the masks are kept until all are there, since (1) needs all images before (2) begins.

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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    with observe(model, output) as observed, torch.no_grad():
        for _, _, images, target, there in Feed(data, max_images, split, seed).read_annotated(lambda n: True):
            if target is None:
                raise ValueError("expected batches with a target, which is the concept of the image, got none.")
            images = prepare(observed, images.to(device))
            name = choose_layer(observed, images, 0) if layer == "auto" else layer
            A = capture(observed, images, [name], gradient=False).A[name].cpu()
            blank = torch.zeros(len(A), *images.shape[2:])
            kept.append(
                (A, pixels(Evidence(saliency=blank, annotations=of_class(there, target)), region), target.cpu())
            )
    metric = UnitIoU(unit_thresholds([A for A, _, _ in kept], share), 1 + max(int(t.max()) for _, _, t in kept))
    for A, mask, target in kept:
        metric.update(A, mask, target)
    return metric
