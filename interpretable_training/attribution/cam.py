"""CAM. Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150

    y[c] = b[c] + sum over k of W[c, k] mean over i, j of A[k, i, j]                 (1)
    S    = sum over k of W[c, k] A[k]                                                 (2)
    y[c] = b[c] + sum over h, k of V[h, c, k] sum over i, j of a[h, i, j] A[k, i, j]  (3)
    S    = sum over h, k of V[h, c, k] A[k], or of a[h] V[h, c, k] A[k]               (4)

A: activations of `layer`. W, b: the one linear layer behind global average pooling. Where a CA-Stream pools by its
attention a[h] of each head h instead, (3) and (4) apply with V, the product of the class weights and the stream's last
projection. Each call checks on its images that (1) or (3) holds; CAM is not defined for other models.
Differs from most code: S is signed; `relu=True` keeps its positive part.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .core.base import GradientCAM, full
from .core.capture import capture
from .core.prepared_model import PreparedModel
from .core.sharded_parameters import whole
from .core.targets import Resolved, class_weights, pick_logits
from .raw_attention import stream_of

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class CAM(GradientCAM):
    """Weight the channels of a layer by the classifier's weights, where only pooling and one linear layer follow.

    >>> CAM()(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        attended: multiply the map with the attention that pools the features, see (4).
    """

    relu: bool = False
    attended: bool = False

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        if self.score != "logit" or self.rule != "plain":
            raise ValueError(
                f"expected score='logit', rule='plain' for CAM without gradients, got {self.score!r}, {self.rule!r}."
            )
        captured = capture(prepared, images, [layer], target, gradient=False)
        A = full(captured.A[layer])
        if not isinstance(captured.target, Tensor):
            raise TypeError(
                "expected class indices as target of CAM, which reads the weights of a class, got a callable."
            )
        S = _behind_stream(prepared, images, captured.target, A, self.attended)
        W = linear_head(prepared, A, captured.output) if S is None and not self.attended else None
        if W is not None:
            return torch.einsum("bk,bk...->b...", class_weights(W, captured.target), A)  # (2)
        if S is None:
            pooling = "attention" if self.attended else "global average"
            raise ValueError(
                f"expected {pooling} pooling and one linear layer behind {layer!r}, got logits of "
                f"{type(prepared.module).__name__} that follow from none of its linear layers; use GradCAM."
            )
        return S


@torch.no_grad()
def _behind_stream(prepared: PreparedModel, images: Tensor, target: Tensor, A: Tensor, attended: bool) -> Tensor | None:
    """Return the map (4) of a model that pools A by attention; None if (3) does not hold."""
    weights = prepared.module.class_weights() if hasattr(prepared.module, "class_weights") else None  # type: ignore
    if weights is None:
        return None
    V, b = (full(tensor) for tensor in weights)  # (heads, N, K), (N,)
    y, attention = stream_of(prepared, images, target)
    a = full(attention.maps[-1])
    a = a if a.ndim == 4 else a.unsqueeze(1)  # (B, heads, h, w)
    if a.shape[2:] != A.shape[2:] or V.shape[2] != A.shape[1]:
        return None
    pooled = torch.einsum("bhij,bkij->bhk", a, A)
    if not _same(b + torch.einsum("bhk,hck->bc", pooled, V), y):  # (3)
        return None
    of_target = torch.stack([class_weights(part, target) for part in V], 1)  # (B, heads, K)
    S = torch.einsum("bhk,bkij->bhij", of_target, A)
    return (a * S if attended else S).sum(1)  # (4)


def linear_head(prepared: PreparedModel, A: Tensor, output: Any) -> Tensor | None:
    """Return weights W (N, K) for which the logits in `output` are W mean(A) + b; None if no linear layer has them."""
    logits = pick_logits(output, prepared.output)
    pooled = A.flatten(2).mean(2)
    heads = []
    for module in prepared.module.modules():
        W = getattr(module, "weight", None)
        if not (isinstance(module, LINEAR) and isinstance(W, Tensor)):
            continue
        if W.ndim > 1 and (len(W), W[0].numel()) == (logits.shape[1], A.shape[1]):
            b = 0 if module.bias is None else whole(full(module.bias.detach()))
            heads.append((whole(full(W.detach())).flatten(1), b))
    for W, b in heads:  # gathered above by all processes, whatever their images give here
        if _same(pooled @ W.T + b, logits):  # (1)
            return W
    return None


def _same(predicted: Tensor, logits: Tensor) -> bool:
    tolerance = 5e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool(((predicted - full(logits)).abs() <= tolerance * (1 + full(logits).abs().amax())).all())
