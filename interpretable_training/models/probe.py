"""Probes with one pooling of the last stage, for comparison with CA-Stream.

    q = mean over i of F[i]                                              (1)  "average"
    q = the class token                                                  (2)  "token"
    q = concatenation over m of sum over i of a[m, i] (WV F[i])[part m]  (3)  "efficient"
    a[m] = softmax over i of F[i] u[m] / sqrt(d)                         (4)
    q = MLP of attention with projected query, keys and values           (5)  "latent": timm's AttentionPoolLatent
    y = W q + b                                                          (6)

F: cells (d) of the last stage. u: learned queries (d). (3), (4): Psomas et al., "Attention, Please! Revisiting
Attentive Probing Through the Lens of Efficiency", ICLR 2026, https://arxiv.org/abs/2506.10178
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.feature_grids import first_tensor

from .ca_stream import CAStream
from .stages import dissect

Pooling = Literal["average", "token", "efficient", "latent"]


class Probe(CAStream):
    """Frozen network with one pooling of its last stage and a new linear head; used, trained and saved like `CAStream`.

    >>> from interpretable_training.models import TinyViT
    >>> net = Probe(TinyViT(5, image_size=32), num_classes=3, kind="efficient", queries=4)
    >>> logits, attention = net.forward_with_attention(torch.randn(2, 3, 32, 32))
    >>> logits.shape, attention[0].shape
    (torch.Size([2, 3]), torch.Size([2, 4, 4, 4]))

    Args:
        backbone: See `CAStream`.
        num_classes: Number of outputs.
        kind: The pooling: "average" (1), "token" (2), "efficient" (3) or "latent" (5).
        queries: Number of queries of (3).
        heads: Number of heads of (5).
        stages: See `CAStream`; the last one is read.
        image_size: See `CAStream`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        kind: Pooling = "average",
        queries: int = 1,
        heads: int = 1,
        stages: Sequence[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        last = dissect(backbone, stages, None, image_size, num_classes).stages[-1:]
        super().__init__(backbone, last, num_classes=num_classes, image_size=image_size)
        d = self.stream.query.shape[1]
        if kind not in ("average", "token", "efficient", "latent"):
            raise ValueError(f"expected kind 'average', 'token', 'efficient' or 'latent', got {kind!r}.")
        parts = {"efficient": queries, "latent": heads}.get(kind, 1)
        if parts < 1 or d % parts:
            raise ValueError(f"expected queries and heads that divide the {d} channels, got {parts}.")
        if kind == "token" and not self.grids[0].prefix:
            raise ValueError(
                f"expected a backbone with a class token for kind='token', got {type(backbone).__name__} without any; "
                "pass kind='average'."
            )
        self.kind = kind
        like = self.stream.query
        pool = EfficientPool(d, queries) if kind == "efficient" else LatentPool(d, heads) if kind == "latent" else None
        self.stream = (AveragePool() if pool is None else pool).to(like.device, like.dtype)  # type: ignore[assignment]

    def features(self, images: Tensor, whole: bool = False) -> tuple[Tensor | None, list[Tensor]]:
        if self.kind != "token":
            return super().features(images, whole)
        _, outputs = self.taps.run(self.backbone, images, whole=False)
        tokens = first_tensor(outputs[0])
        assert tokens is not None
        return None, [tokens[:, 0, :, None, None]]  # (2)

    def class_weights(self) -> None:
        return None


class AveragePool(nn.Module):
    """Average of the cells (1)."""

    def forward(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the average (B, d) and no scores."""
        return full(maps[-1]).mean((2, 3)).to(maps[-1].dtype), []


class EfficientPool(nn.Module):
    """Attention of several queries, each with a part of the values (3)."""

    def __init__(self, dim: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return q (B, d) and scores (B, m, 1, h, w)."""
        F = full(maps[-1])
        cells = F.flatten(2)  # (B, d, p)
        s = full(self.query) @ cells * cells.shape[1] ** -0.5  # (4), (B, m, p)
        pooled = s.softmax(-1) @ cells.transpose(1, 2)  # (B, m, d); WV (F' a) = (F WV)' a
        W = full(self.value.weight).unflatten(0, (len(self.query), -1))  # (m, d / m, d)
        q = torch.einsum("bmd,mcd->bmc", pooled, W).flatten(1)  # (3)
        return q.to(self.value.weight.dtype), [s.unsqueeze(2).unflatten(3, F.shape[2:])]


class LatentPool(nn.Module):
    """timm's attention pooling (5), and its scores."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        from timm.layers import AttentionPoolLatent  # imported late, because it takes seconds

        self.pool = AttentionPoolLatent(dim, num_heads=heads)

    def forward(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return q (B, d) and scores (B, 1, heads, h, w)."""
        cells = maps[-1].flatten(2).transpose(1, 2).to(self.pool.kv.weight.dtype)
        keys = [t[: t.shape[0] // 2].unflatten(0, (self.pool.num_heads, -1)) for t in self.pool.kv.parameters()]
        u = self.pool.q(self.pool.latent[0, 0]).unflatten(0, (self.pool.num_heads, -1))  # (heads, d / heads)
        W, b = keys
        s = torch.einsum("bpd,hd->bhp", cells, torch.einsum("hc,hcd->hd", u, W)) + (u * b).sum(1)[:, None]
        return self.pool(cells), [(s * u.shape[1] ** -0.5)[:, None].unflatten(3, maps[-1].shape[2:])]


def probe_cost(net: CAStream, images: Tensor) -> tuple[int, int]:
    """Return the number of trained parameters, and of operations behind the backbone for `images`.

    >>> probe_cost(CAStream(network), images)[0]
    80
    """
    trained = sum(p.numel() for module in (net.stream, net.probe) if module is not None for p in module.parameters())
    with torch.no_grad():
        _, maps = net.features(images)
    with FlopCounterMode(display=False) as counter:  # with a graph: it cannot count modules that get views without one
        net.pool(maps, torch.zeros(len(images), dtype=torch.long, device=images.device))
    return trained, counter.get_total_flops()
