"""Dependence of maps on the labels of the training. Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292

    s = mean over images of sim(S, S')    (1)

S: map of a network that learned the labels. S': of one of the same architecture that learned labels dealt out at
random, for the same class. It knows its training images by heart and nothing else; maps that stay the same show the
image, not what was learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.core.base import Methods, explain, name_methods
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.options import check_fields
from interpretable_training.attribution.core.prepared_model import Output, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.ranges import COUNT, SHARE, Range
from interpretable_training.attribution.core.targets import Target, in_range

from ..core.inputs import shape_of
from .checks import SIMILARITIES, Check, Rule, Similarity, mean, similarities


@dataclass(frozen=True)
class DataRandomization:
    """Compares each method's maps of a network and of one that learned random labels (1).

    >>> import copy
    >>> from interpretable_training.attribution import GradCAM
    >>> twin = copy.deepcopy(network)  # trained on DataRandomization().shuffled(target)
    >>> [check.passed for check in DataRandomization()(network, twin, GradCAM(), images)]
    [False]

    Args:
        similarity: which similarities are measured.
        decided_by: the one that decides.
        threshold: below which a method passes.
        seed: of `shuffled`.
    """

    similarity: Sequence[Similarity] = SIMILARITIES
    decided_by: Similarity = "ssim"
    threshold: float = 0.5
    seed: int = 0

    name = "data randomization"

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("decided_by", self.decided_by, *self.similarity)

    def shuffled(self, target: Tensor) -> Tensor:
        """Return the labels (N,) in another order, so that each stays as frequent as it is."""
        if not isinstance(target, Tensor) or target.ndim != 1:
            raise ValueError(f"expected labels (N,) as a tensor, got {shape_of(target)}.")
        return target[torch.randperm(len(target), generator=torch.Generator().manual_seed(self.seed))]

    def __call__(
        self,
        model: nn.Module,
        randomized: nn.Module,
        methods: Methods,
        images: Tensor,
        target: Target = None,
        *,
        output: Output = None,
    ) -> list[Check]:
        """Return one `Check` per method.

        Args:
            model: learned the labels.
            randomized: learned those of `shuffled`; see `memorize`.
            methods: name -> method, or a list.
            images: (B, C, H, W) that neither was trained on.
            target: the classes that are explained: the true labels; by default those that `model` predicts.
            output: which part of the models' output are the logits.
        """
        named = name_methods(methods)
        with prepare_model(model, output) as prepared:
            resolved = prepared.resolve(prepare(prepared, images), target)
        before, after = (explain(named, m, images, resolved, output=output) for m in (model, randomized))
        return [self._check(name, similarities(before[name], after[name], self.similarity)) for name in named]

    def _check(self, name: str, values_of: dict[str, Tensor]) -> Check:
        similarity = {kind: mean(values) for kind, values in values_of.items()}
        rule = Rule(self.decided_by, self.threshold)
        undefined = int(values_of[self.decided_by].isnan().sum()) if self.decided_by in values_of else 0
        text = rule.text("of the maps of a network that learned random labels")
        passed = rule.passed(similarity)
        return Check(self.name, name, similarity, passed, text, self.decided_by, n_undefined=undefined)


def memorize(
    network: nn.Module,
    images: Tensor,
    target: Tensor,
    accuracy: float = 0.95,
    max_epochs: int = 200,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> float:
    """Train until the network knows a share of the images by heart; returns that share, in eval mode.

    >>> memorize(nn.Linear(2, 2), torch.eye(2), torch.tensor([0, 1]), learning_rate=0.1)
    1.0

    Args:
        network: is trained in place.
        images: (N, C, H, W).
        target: (N,).
        accuracy: the share that is enough.
        max_epochs: after which it is an error not to have reached it.
        batch_size: images per step.
        learning_rate: of AdamW.
        seed: of the order of the images.
        **options: further ones of AdamW.
    """
    _check_training(images, target, accuracy, max_epochs, batch_size)
    if not Range(0, 1e6).holds(learning_rate):
        raise ValueError(f"expected learning_rate as a {Range(0, 1e6)}, got {learning_rate!r:.100}.")
    unwrap(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, **options)
    generator = torch.Generator().manual_seed(seed)
    known = 0.0
    for _ in range(max_epochs):
        network.train()
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            optimizer.zero_grad()
            logits = network(images[rows])
            in_range(target[rows], logits.shape[1])
            F.cross_entropy(logits, target[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = [network(x).argmax(1) == y for x, y in zip(images.split(256), target.split(256))]
        known = float(torch.cat(right).float().mean())
        if known >= accuracy:
            return known
    raise RuntimeError(
        f"expected the network to know {accuracy:.0%} of the images by heart after {max_epochs} epochs, got "
        f"{known:.1%}; pass fewer images, a larger network or more epochs."
    )


def _check_training(images: Any, target: Any, accuracy: float, max_epochs: int, batch_size: int) -> None:
    """Refuse images and labels from which nothing can be learned, and a training that has no step."""
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images) or not images.is_floating_point():
        raise ValueError(f"expected floating point images (N, C, H, W), at least one, got {shape_of(images)}.")
    labels = isinstance(target, Tensor) and target.dtype == torch.long and target.shape == (len(images),)
    if not labels or int(target.min()) < 0:
        got = f"{shape_of(target)}, lowest {int(target.min())}" if labels else shape_of(target)
        raise ValueError(f"expected target ({len(images)},) of class numbers from 0, int64, got {got}.")
    if not bool(images.isfinite().all()):
        raise ValueError("expected images of finite numbers, got NaN or infinity; leave these images out.")
    limits = {"accuracy": (accuracy, SHARE), "max_epochs": (max_epochs, COUNT), "batch_size": (batch_size, COUNT)}
    for name, (value, allowed) in limits.items():
        if not allowed.holds(value):
            raise ValueError(f"expected {name} as a {allowed}, got {value!r:.100}.")
