"""The deconvolution network. Zeiler and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901

    g = dy/dx, where each ReLU lets pass what is positive backward, whatever came forward    (1)
    S = max over channels of |g|                                                             (2)

x: image (C, H, W). y: logit of the target class. The rule (1) is `rules.py`'s.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .core.activation_gates import Scope
from .core.base import Attribution
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, Score
from .gradient import Reduce, input_gradient, reduce_channels


@dataclass(frozen=True)
class DeconvNet(Attribution):
    """The network run backwards, rectified on the way.

    Args:
        reduce: of the channels, see `Gradient`.
        score: what is explained, see `Gradient`; a one-hot activation in the paper, the same map up to scale.
        scope: which activations, see `GuidedBackprop`.
    """

    reduce: Reduce = "max_abs"
    score: Score = "logit"
    scope: Scope = "all"

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        g = input_gradient(prepared, images, target, self.score, "deconv", self.scope)  # (1)
        return reduce_channels(g, self.reduce)  # (2)
