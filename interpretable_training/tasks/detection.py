"""Detection: the score of a detection is that of the best box of its class at its place.

    y[t] = max over d of IoU(box[d], box[t]) p[d, class[t]]    (1)

t: a detection of the unchanged image, or a labeled box. d: the boxes for the changed image. p: their class
probabilities. (1) is the similarity of D-RISE, Petsiuk et al., CVPR 2021, https://arxiv.org/abs/2006.03204, with the
probability of the class in the place of the cosine of all class probabilities. The gradient passes p alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from .base import Example, Task
from .outputs import entry_of


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: the detections by their scores, then the labeled ones.

    >>> Boxes(torch.zeros(1, 4), torch.tensor([2]), 1, (16, 16)).detected
    1

    Attributes:
        boxes: (M, 4) in pixels.
        labels: class of each (M,).
        detected: number of detections.
        size: height and width of the image.
    """

    boxes: Tensor
    labels: Tensor
    detected: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Candidates:
    """Boxes for one image (D, 4) in pixels, and the probability of each class (D, N).

    >>> Candidates(torch.zeros(2, 4), torch.zeros(2, 3)).probs.shape
    torch.Size([2, 3])
    """

    boxes: Tensor
    probs: Tensor


@dataclass(frozen=True)
class Detection(Task):
    """Explain single detections, followed by place and class; the most probable one by default.

    Reads lists of dicts with `boxes`, `scores` and `labels` (torchvision), and `logits` with `pred_boxes` (DETR).

    >>> boxes = [{"boxes": torch.tensor([[0., 0, 8, 8]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([2])}]
    >>> task = Detection()
    >>> task.scores(boxes, task.reference(boxes, Example(torch.zeros(1, 3, 16, 16)))).tolist()
    [[0.8999...]]

    Args:
        max_boxes: how many detections of an image can be explained.
        threshold: the lowest probability of a detection.
    """

    max_boxes: int = 5
    threshold: float = 0.05
    name = "detection"
    follows = True

    def candidates(self, output: Any, size: tuple[int, int]) -> list[Candidates]:
        """Return the boxes for each image."""
        if is_listed(output):
            return [_of_listed(boxes) for boxes in output]
        logits, boxes = entry_of(output, "logits"), entry_of(output, "pred_boxes")
        if logits is None or boxes is None:
            raise ValueError(
                "expected a list of dicts with boxes, scores and labels, or logits with pred_boxes for detection, got "
                f"{type(output).__name__}; write a task of your own, see docs/tasks.md."
            )
        H, W = size
        corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([W, H, W, H])
        return [Candidates(*each) for each in zip(corners, logits.softmax(-1)[..., :-1])]

    def reference(self, output: Any, example: Example) -> Boxes:
        size = (int(example.image.shape[-2]), int(example.image.shape[-1]))
        of_image = self.candidates(output, size)[0]
        probs, labels = of_image.probs.detach().max(1) if of_image.probs.numel() else (torch.zeros(0),) * 2
        order = probs.argsort(descending=True)[: self.max_boxes]
        order = order[probs[order] >= self.threshold]
        boxes, labels = of_image.boxes.detach()[order], labels[order].long()
        detected, (given, classes) = len(boxes), labeled_boxes(example)
        if given is not None and classes is not None:
            boxes = torch.cat([boxes, given[: self.max_boxes].to(boxes)])
            labels = torch.cat([labels, classes[: self.max_boxes].to(labels)])
        return Boxes(boxes, labels, detected, size)

    def scores(self, output: Any, reference: Boxes | None = None) -> Tensor:
        if reference is None:
            raise ValueError("expected the boxes that are followed, got none; pass the reference.")
        rows = [self._matched(each, reference) for each in self.candidates(output, reference.size)]
        return torch.stack(rows) if len(reference.labels) else rows[0].new_zeros(len(rows), 1)

    def _matched(self, candidates: Candidates, reference: Boxes) -> Tensor:
        """Return the score of each box of the reference, (M,)."""
        if not len(candidates.boxes) or not len(reference.labels):
            return candidates.probs.new_zeros(len(reference.labels))
        place = box_iou(candidates.boxes.detach().float(), reference.boxes.float())
        known = reference.labels < candidates.probs.shape[1]  # a class that the output lacks has no probability
        p = candidates.probs[:, reference.labels.clamp(max=candidates.probs.shape[1] - 1)] * known
        return (place.to(p) * p).amax(0)  # (1)

    def prob(self, output: Any, reference: Boxes | None = None) -> Tensor:
        return self.scores(output, reference)

    def ranking(self, scores: Tensor, reference: Boxes | None = None) -> Tensor:
        ranking = scores.clone()
        if reference is not None:
            ranking[:, max(1, reference.detected) :] = -1
        return ranking

    def label(self, reference: Boxes, example: Example) -> int | None:
        return reference.detected if len(reference.labels) > reference.detected else None

    def class_of(self, column: int, reference: Boxes | None = None) -> int:
        return int(reference.labels[column]) if reference is not None and column < len(reference.labels) else -1

    def caption(self, column: int, reference: Boxes | None = None, class_names: Sequence[str] | None = None) -> str:
        if self.class_of(column, reference) < 0:
            return "no detection"
        assert reference is not None
        x1, y1, x2, y2 = (round(v) for v in reference.boxes[column].tolist())
        kind = "label" if column >= reference.detected else f"{column + 1} of {reference.detected}"
        return f"{super().caption(column, reference, class_names)} at {x1},{y1} to {x2},{y2} ({kind})"

    def outline(self, column: int, reference: Boxes | None = None) -> Tensor | None:
        if self.class_of(column, reference) < 0:
            return None
        assert reference is not None
        x1, y1, x2, y2 = (round(v) for v in reference.boxes[column].tolist())
        pixels = torch.zeros(reference.size, dtype=torch.bool)
        pixels[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = True
        return pixels

    def dense(self, output: Any) -> int | None:
        return 0

    def describe(self, output: Any) -> str:
        form = "dicts of boxes, scores and labels" if is_listed(output) else "class scores with boxes"
        return f"{form}, taken as detection; up to {self.max_boxes} boxes with a probability from {self.threshold}"


def is_listed(output: Any) -> bool:
    """Whether an output is a list of dicts with boxes and scores, as those of torchvision's detectors.

    >>> is_listed(torch.zeros(2, 4))
    False
    """
    return (
        isinstance(output, (list, tuple))
        and len(output) > 0
        and all(isinstance(o, Mapping) and {"boxes", "scores", "labels"} <= set(o) for o in output)
    )


def _of_listed(detections: Mapping[str, Tensor]) -> Candidates:
    """Return boxes with the probability of their only class."""
    boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
    N = int(labels.max()) + 1 if len(labels) else 1
    one = torch.nn.functional.one_hot(labels.long(), N).to(scores)
    return Candidates(boxes, one * scores[:, None])


def labeled_boxes(example: Example) -> tuple[Tensor | None, Tensor | None]:
    """Return boxes (n, 4) and classes (n,) of an image's label: a dict with `boxes` and `labels`, or such entries.

    >>> labeled_boxes(Example(images[:1], [{"boxes": torch.zeros(2, 4), "labels": [1, 2]}]))[1]
    tensor([1, 2])
    """
    target = example.target
    target = target[0] if isinstance(target, (list, tuple)) and len(target) == 1 else target
    nested = [v[0] for v in example.rest.values() if isinstance(v, (list, tuple)) and len(v) == 1]
    for holder in (target, *nested):
        if isinstance(holder, Mapping) and isinstance(holder.get("boxes"), Tensor) and "labels" in holder:
            return holder["boxes"], torch.as_tensor(holder["labels"])
    boxes, labels = example.entry("boxes"), example.entry("box_labels", "labels")
    if isinstance(boxes, Tensor) and isinstance(labels, Tensor) and boxes.ndim == 2 and labels.ndim == 1:
        known = ~boxes.isnan().any(1)
        return boxes[known], labels[known]
    return None, None
