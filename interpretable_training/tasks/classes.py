"""Tasks with one number per class or quantity: classification, several labels, regression."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution.core.targets import pick_logits

from .base import Example, Task


class Classification(Task):
    """Logits (B, N) of classes that exclude each other; one logit stands for two classes.

    >>> Classification().describe(torch.zeros(4, 3))
    '3 numbers per image, taken as logits of 3 classes'
    """

    name = "classification"
    has_classes = True

    def scores(self, output: Any, reference: Any = None) -> Tensor:
        y = pick_logits(output)
        return torch.cat([-y, y], 1) if y.shape[1] == 1 else y

    def prob(self, output: Any, reference: Any = None) -> Tensor:
        y = pick_logits(output)
        return self.scores(output).sigmoid() if y.shape[1] == 1 else y.softmax(1)

    def label(self, reference: Any, example: Example) -> int | None:
        return None if example.target is None else int(example.target[0])

    def describe(self, output: Any) -> str:
        N = pick_logits(output).shape[1]
        return f"{N} numbers per image, taken as logits of {N} classes" if N > 1 else "one logit per image"


class MultiLabel(Task):
    """Logits (B, N), one for each of several labels.

    >>> MultiLabel().prob(torch.zeros(1, 2)).tolist()
    [[0.5, 0.5]]
    """

    name = "multilabel"

    def label(self, reference: Any, example: Example) -> int | None:
        return None if example.target is None else int(example.target[0].float().argmax())  # the first of several

    def describe(self, output: Any) -> str:
        return f"{self.scores(output).shape[1]} logits per image, one for each label"


class Regression(Task):
    """Numbers (B, N) of any size: each is explained by itself.

    >>> Regression().caption(1)
    'output 1'
    """

    name = "regression"
    bounded = False

    def caption(self, column: int, reference: Any = None, class_names: Sequence[str] | None = None) -> str:
        return class_names[column] if class_names and column < len(class_names) else f"output {column}"

    def ranking(self, scores: Tensor, reference: Any = None) -> Tensor:
        ranking = scores.new_zeros(scores.shape)
        ranking[:, 0] = 1  # the first output, unless another is given
        return ranking

    def describe(self, output: Any) -> str:
        N = pick_logits(output).shape[1]
        return f"{N} number{'s' * (N > 1)} per image, taken as regression"
