"""Guided backpropagation. Springenberg et al., ICLR-W 2015, https://arxiv.org/abs/1412.6806

    g = dy/dx, where each ReLU passes positive gradients of positive inputs only    (1)
    S = max over channels of |g|                                                   (2)

x: image (C, H, W). y: logit of the target class. The rule (1) is implemented in `core/activation_gates.py`,
for other activations too.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .core.activation_gates import Scope
from .core.base import Attribution
from .core.input_gradients import input_gradient
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class GuidedBackprop(Attribution):
    """Backpropagate the score through activations that pass positive gradients of positive inputs only.

    >>> GuidedBackprop()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        reduce: of the channels, see `Gradient`.
        score: see `Gradient`.
        scope: "all" activations that run, or only those of registered "modules", as libraries that replace modules do.
    """

    reduce: Reduce = "max_abs"
    score: Score = "logit"
    scope: Scope = "all"

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        g = input_gradient(prepared, images, target, self.score, "guided", self.scope)  # (1)
        return reduce_channels(g, self.reduce)  # (2)
