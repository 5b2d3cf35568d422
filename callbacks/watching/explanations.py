"""Explanations of a batch of images: maps, logits, and the numbers computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.map_operations import degenerate
from interpretable_training.attribution.core.targets import as_classes, by_rank, score_of
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.classes import Classification
from interpretable_training.visual.outlines import draw_outlines

TARGETS = ("pred", "label", "both", "least")
RANKED = ("classification", "multilabel", "regression")  # tasks that have hardest images
Views = dict[str, Tensor]  # name -> class of each image (B,)


@dataclass
class Explained:
    """Explanations of a batch of images, on the CPU.

    Attributes:
        ids: index of each image, or a name.
        images: the images (n, C, H, W) as the network got them.
        label: true class (n,), where it is known; -1 of an image without one.
        logits: scores (n, N); a column for each thing that the task can explain.
        task: what the network is for.
        targets: view -> the class that is explained (n,).
        maps: view -> method -> raw maps (n, H, W).
        inside: pixels of the objects (n, H, W), where batches have masks or boxes.
        errors: method -> why it has no maps, or that its maps hold values that are not numbers.
    """

    ids: list[Any]
    images: Tensor
    label: Tensor | None
    logits: Tensor
    task: Task = field(default_factory=Classification)
    targets: Views = field(default_factory=dict)
    maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    inside: Tensor | None = None
    errors: dict[str, Failure] = field(default_factory=dict)
    probs: Tensor | None = None
    ranking: Tensor | None = None
    followed: list[Any] = field(default_factory=list)

    @property
    def columns(self) -> Tensor:
        """Return the column that is explained where no class is given, (n,); one logit stands for two classes."""
        if self.ranking is not None:
            return self.ranking.argmax(1)
        return (self.logits[:, 0] > 0).long() if self.logits.shape[1] == 1 else by_rank("pred", self.logits)

    @property
    def pred(self) -> Tensor:
        """Return the predicted class (n,)."""
        return self.classes(self.columns)

    def classes(self, columns: Tensor) -> Tensor:
        """Return the class of each column, (n,)."""
        return torch.tensor([self.task.class_of(c, self._followed(i)) for i, c in enumerate(columns.tolist())])

    def prob(self, columns: Tensor) -> Tensor:
        """Return the probability of a column of each image, (n,); of an unbounded task the score itself."""
        if self.probs is None:
            return score_of(self.logits, columns, "sigmoid" if self.task.name == "multilabel" else "prob")
        values = self.probs if self.task.bounded else self.logits
        return values.gather(1, columns[:, None])[:, 0]

    def caption(self, row: int, column: int, class_names: Sequence[str] | None) -> str:
        """Return a column of an image in words."""
        return self.task.caption(column, self._followed(row), class_names)

    def labels(self, row: int) -> list[int]:
        """Return the true classes of an image."""
        numbers = self.label is not None and self.label.is_floating_point() and self.label.ndim == 1
        if self.label is None or numbers or not self.task.bounded:
            return []
        label = self.label[row]
        return (label > 0.5).nonzero()[:, 0].tolist() if label.ndim else [int(label)] if label >= 0 else []

    def marked(self, drawn: Tensor, view: str) -> Tensor:
        """Return pictures uint8 (n, H, W, 3) with the outlines of what a view explains."""
        outlines = [self.task.outline(c, self._followed(i)) for i, c in enumerate(self.targets[view].tolist())]
        return draw_outlines(drawn, outlines)

    def _followed(self, row: int) -> Any:
        return self.followed[row] if self.followed else None

    def rows(self, order: list[int]) -> "Explained":
        """Return the rows `order`, in this order."""
        return Explained(
            [self.ids[i] for i in order],
            self.images[order],
            None if self.label is None else self.label[order],
            self.logits[order],
            self.task,
            {view: target[order] for view, target in self.targets.items()},
            {view: {name: S[order] for name, S in maps.items()} for view, maps in self.maps.items()},
            None if self.inside is None else self.inside[order],
            self.errors,
            None if self.probs is None else self.probs[order],
            None if self.ranking is None else self.ranking[order],
            [self.followed[i] for i in order] if self.followed else [],
        )

    def sorted_by_id(self) -> "Explained":
        """Return the images in the order of their ids."""
        return self.rows(sorted(range(len(self.ids)), key=self.ids.__getitem__))

    def largest_losses(self, k: int) -> "Explained":
        """Return the `k` images with the largest losses."""
        loss = self.loss()
        assert loss is not None  # by which they were chosen
        return self.rows(loss.nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)[:k].tolist())

    def loss(self) -> Tensor | None:
        """Return the loss of each image, (n,)."""
        if self.label is None or self.task.name not in RANKED:
            return None
        return losses(self.logits, self.label, self.task.name == "regression")


def joined(parts: list[Explained]) -> Explained:
    """Concatenate explanations, with the methods that all of them have."""
    first = parts[0]
    views = {
        view: {
            name: torch.cat([part.maps[view][name] for part in parts])
            for name in maps
            if all(name in part.maps[view] for part in parts)
        }
        for view, maps in first.maps.items()
    }
    labels, insides = (
        [v for v in values if v is not None] for values in ([p.label for p in parts], [p.inside for p in parts])
    )
    return Explained(
        [index for part in parts for index in part.ids],
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        padded([part.logits for part in parts]),
        first.task,
        {view: torch.cat([part.targets[view] for part in parts]) for view in first.targets},
        views,
        torch.cat(insides) if len(insides) == len(parts) else None,
        {name: why for part in parts for name, why in part.errors.items()},
        None if first.probs is None else padded([part.probs for part in parts if part.probs is not None]),
        None if first.ranking is None else padded([p.ranking for p in parts if p.ranking is not None], -torch.inf),
        [followed for part in parts for followed in part.followed],
    )


def padded(rows: list[Tensor], value: float = 0.0) -> Tensor:
    """Concatenate scores (n, N) of images with different numbers of columns."""
    N = max(part.shape[1] for part in rows)
    return torch.cat([nn.functional.pad(part, (0, N - part.shape[1]), value=value) for part in rows])


def check_target(target: str | int) -> None:
    """Raise a ValueError for a target that no network has."""
    named = isinstance(target, str) and (target in TARGETS or target.removeprefix("topk:").isdigit())
    if not named and (not isinstance(target, int) or target < 0):
        raise ValueError(
            f"expected target to be one of {(*TARGETS, 'topk:K')} or the number of a class, got {target!r}."
        )


def losses(logits: Tensor, label: Tensor, squared: bool = False) -> Tensor | None:
    """Return the cross-entropy of each image, (B,); the mean over classes where images have several labels.

    Where it is `squared` the mean squared error of the numbers (B, N) of a regression.
    """
    logits = logits.float()
    if squared:
        return (logits - label).square().mean(1) if label.shape == logits.shape else None
    if label.ndim == 2:
        return nn.functional.binary_cross_entropy_with_logits(logits, label.float(), reduction="none").mean(1)
    if label.is_floating_point() or (len(label) and int(label.max()) >= max(2, logits.shape[1])):
        return None  # labels of something else, such as the digits beside a discriminator
    return score_of(logits, label.long(), "loss")


def view(target: str | int, logits: Tensor, label: Tensor | None) -> Views:
    """Return the explained classes by the name of the view: one view, or several for "both" and "topk:K"."""
    if target == "both":
        return view("pred", logits, label) | view("label", logits, label)
    if target == "label":
        if label is None:
            raise ValueError("expected labels in the batch for target='label', got none; pass target='pred'.")
        return {"label": label.float().argmax(1) if label.ndim == 2 else label.long()}  # the first of several
    if isinstance(target, int):
        return {f"class {target}": as_classes(target, logits)}
    classes = by_rank(target, logits)
    if classes.ndim == 1:
        return {target: classes}
    return {f"top{k + 1}": classes[:, k] for k in range(classes.shape[1])}


def statistics(saliency: Tensor) -> dict[str, Tensor]:
    """Return numbers by which raw maps (n, H, W) of different epochs compare, (n,) each.

    `max`; `mass`, the mean of the positive values; `entropy`, that of the positive mass over pixels, from 0 (one pixel)
    to 1 (spread evenly); `degenerate`, whether the map is constant or not a number.
    """
    S = saliency.flatten(1).nan_to_num().clamp(min=0).double()
    p = S / S.sum(1, keepdim=True).clamp(min=1e-300)
    entropy = -(p * p.clamp(min=1e-300).log()).sum(1) / torch.tensor(float(max(2, S.shape[1]))).log()
    return {
        "max": saliency.flatten(1).amax(1),
        "mass": S.mean(1),
        "entropy": entropy,
        "degenerate": degenerate(saliency),
    }
