"""CAM. Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150

    y[c] = b[c] + sum over k of W[c, k] mean over i, j of A[k, i, j]    (1)
    S    = sum over k of W[c, k] A[k]                                    (2)

A: activations of `layer`. W, b: the one linear layer behind global average pooling. That (1) holds is checked on the
images at hand; where it does not, CAM is not defined.
Differs from most code: S is signed; `relu=True` keeps its positive part.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import GradientCAM, full
from .capture import capture
from .observe import Observed
from .targets import Resolved, class_weights, pick_logits

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class CAM(GradientCAM):
    """The classifier's own weights, for networks that end in average pooling and one linear layer."""

    relu: bool = False

    def layer_map(self, observed: Observed, images: Tensor, target: Resolved, layer: str) -> Tensor:
        if self.on != "logit" or self.rule != "plain":
            raise ValueError(f"expected on='logit', rule='plain': CAM has no gradient; got {self.on!r}, {self.rule!r}.")
        captured = capture(observed, images, [layer], target, gradient=False)
        A = full(captured.A[layer])
        if not isinstance(captured.target, Tensor):
            raise TypeError("expected class indices as target: CAM reads the weights of a class, a callable has none.")
        W = linear_head(observed, A, captured.output)
        if W is None:
            raise ValueError(
                f"expected global average pooling and one linear layer behind {layer!r}, but the logits of "
                f"{type(observed.module).__name__} are not W mean(A) + b for any of its layers; use GradCAM."
            )
        return torch.einsum("bk,bk...->b...", class_weights(W, captured.target), A)  # (2)


def linear_head(observed: Observed, A: Tensor, output: Any) -> Tensor | None:
    """The weights W (N, K) with which the logits in `output` are W mean(A) + b, None if there are none."""
    logits = pick_logits(output, observed.output)
    tolerance = 5e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-4
    y, pooled = full(logits), A.flatten(2).mean(2)
    for module in observed.module.modules():
        W = getattr(module, "weight", None)
        if not (isinstance(module, LINEAR) and isinstance(W, Tensor)) or W.flatten(1).shape != (y.shape[1], A.shape[1]):
            continue
        W = full(W.detach()).flatten(1)
        b = 0 if module.bias is None else full(module.bias.detach())
        if ((pooled @ W.T + b - y).abs() <= tolerance * (1 + y.abs().amax())).all():  # (1)
            return W
    return None
