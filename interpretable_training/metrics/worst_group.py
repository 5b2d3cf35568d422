"""Accuracy of the worst group of images. Sagawa et al., Distributionally Robust Neural Networks, ICLR 2020,
https://arxiv.org/abs/1911.08731

    a[g] = sum over images of group g of 1[argmax y = c] / number of images of group g    (1)
    WG   = min over g of a[g]                                                             (2)

Groups are usually pairs of class and cue. Differs from the paper: (2) leaves out groups with few images.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from interpretable_training.attribution.core.ranges import check_ranges


class WorstGroupAccuracy(Metric):
    """Accuracy, from 0 to 1, of the group of images on which it is lowest (2); NaN before there is a group.

    >>> worst = WorstGroupAccuracy()
    >>> worst.update(torch.tensor([0, 1, 1, 1]), target=torch.tensor([0, 1, 1, 0]), group=torch.tensor([0, 0, 1, 1]))
    >>> worst.compute()
    tensor(0.5000)

    Args:
        num_groups: the highest number of a group, plus one, or more.
        min_images: images that a group has to have, since the accuracy of a few says little.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    count: Tensor
    n_unknown: Tensor
    n_beyond: Tensor

    def __init__(self, num_groups: int = 10_000, min_images: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_ranges("WorstGroupAccuracy", {"num_groups": num_groups, "min_images": min_images})
        self.num_groups, self.min_images = num_groups, min_images
        for name in ("correct", "count"):
            self.add_state(name, torch.zeros(num_groups, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("n_unknown", "n_beyond"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, group: Tensor) -> None:
        """Add a batch: logits (B, N) or predicted classes (B,), classes (B,) and groups (B,); -1 is unknown."""
        shapes = [tuple(t.shape) for t in (logits[..., 0] if logits.ndim == 2 else logits, target, group)]
        if target.ndim != 1 or len(set(shapes)) > 1 or group.is_floating_point():
            raise ValueError(
                f"expected logits (B, N) or classes (B,), target (B,) and whole numbers group (B,), got "
                f"{tuple(logits.shape)}, {shapes[1]} and {shapes[2]} of {group.dtype}; pass one of each per image."
            )
        predicted = logits.argmax(1) if logits.ndim == 2 else logits
        known = (group >= 0) & (group < self.num_groups)
        slot = torch.where(known, group, 0).long()
        self.count = self.count.scatter_add(0, slot, known.long())
        self.correct = self.correct.scatter_add(0, slot, (known & (predicted == target)).long())
        self.n_unknown = self.n_unknown + (group < 0).sum()
        self.n_beyond = self.n_beyond + (group >= self.num_groups).sum()
        if group.device.type == "cpu":  # elsewhere a look at the values would wait for the device
            self._refuse_beyond()

    def accuracies(self) -> Tensor:
        """Return the accuracy of each group (G,), NaN of those with too few images; of all processes."""
        with self.sync_context():
            return self._accuracies()

    def compute(self) -> Tensor:
        self._refuse_beyond()
        a = self._accuracies()
        return a.nan_to_num(torch.inf).min().where(~a.isnan().all(), torch.nan)  # (2)

    def _accuracies(self) -> Tensor:
        a = self.correct / self.count  # (1); 0/0 is NaN
        return a.masked_fill(self.count < self.min_images, torch.nan)

    def _refuse_beyond(self) -> None:
        if self.n_beyond > 0:
            raise ValueError(
                f"expected groups below num_groups={self.num_groups}, got {int(self.n_beyond)} images of others; "
                "number groups from 0, or pass how many there are as num_groups."
            )
