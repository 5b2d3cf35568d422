"""The deconvolution network. Zeiler and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901

    g = dy/dx, where each ReLU passes positive gradients only, whatever its input was    (1)
    S = max over channels of |g|                                                    (2)

x: image (C, H, W). y: logit of the target class. The rule (1) is implemented in `core/activation_gates.py`.
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
class DeconvNet(Attribution):
    """Backpropagate the score through ReLUs that pass positive gradients only, and reduce it to one value per pixel.

    >>> DeconvNet()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        reduce: of the channels, see `Gradient`.
        score: see `Gradient`; the paper starts at a one-hot activation, which gives the same map up to scale.
        scope: activations that follow (1), see `GuidedBackprop`.
    """

    reduce: Reduce = "max_abs"
    score: Score = "logit"
    scope: Scope = "all"

    differentiable: ClassVar[bool] = True

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        g = input_gradient(prepared, images, target, self.score, "deconv", self.scope)  # (1)
        return reduce_channels(g, self.reduce)  # (2)
