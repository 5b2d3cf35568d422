"""Attention of one query over the cells of feature maps. Torres et al., CVPR-W 2024, https://arxiv.org/abs/2404.14996

    s[l]   = F[l] q[l] / sqrt(d[l])                                     (1)
    a[l]   = softmax over i of s[l]                                     (2)
    CA[l]  = sum over i of a[l, i] F[l, i]                              (3)
    q[l+1] = W[l] CA[l] + b[l]                                          (4)
    s[l]   = F[l] WK q[l] / sqrt(d[l]), CA[l] = (F[l] WV)' a[l]         (5)  with projected keys and values

F[l]: the maps (d, h, w) of stage l as p = h w cells F[l, i] of length d. q[l]: query (d). Several heads split d: each
has its own scores over its part. In (5) keys and values are not computed: F (WK q) = (F WK) q, and WV' (F' a) =
(F WV)' a. Scores and pooling are float32 at least, also under autocast.
Differs from the paper: (4) and (5) have biases, as the authors' code has; `bias=False` leaves them out.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.sharded_parameters import whole


class CrossAttention(nn.Module):
    """Step of the stream: pool the maps of a stage and compute the query of the next.

    Args:
        dim: Channels of the stage.
        dim_next: Channels of the next stage, or of the classifier's input.
        heads: Number of parts into which the channels are split.
        projected: Whether keys and values are linear in the maps (5) or the maps themselves.
        bias: Whether (4) and (5) have biases.
    """

    def __init__(self, dim: int, dim_next: int, heads: int = 1, projected: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(dim, dim, bias) if projected else None
        self.value = nn.Linear(dim, dim, bias) if projected else None
        self.out = nn.Linear(dim, dim_next, bias)

    def forward(self, F: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries of the next stage and scores (B, heads, h, w) for maps F (B, d, h, w) and queries (B, d)."""
        cells = full(F).flatten(2).unsqueeze(1)  # (B, 1, d, p)
        split = full(q).unflatten(1, (self.heads, -1))  # (B, heads, d / heads)
        scale = split.shape[-1] ** -0.5
        if self.key is None or self.value is None:
            cells = cells.squeeze(1).unflatten(1, (self.heads, -1))  # (B, heads, d / heads, p)
            s = split.unsqueeze(2) @ cells * scale  # (1), (B, heads, 1, p)
            CA = (s.softmax(-1) @ cells.transpose(2, 3)).flatten(1)  # (2), (3)
        else:
            s = torch.einsum("bnc,ncd->bnd", split, self._by_head(self.key)).unsqueeze(2) @ cells  # (5)
            if self.key.bias is not None:
                s = s + (split.flatten(1) * full(self.key.bias)).view_as(split).sum(2)[..., None, None]
            s = s * scale
            pooled = (s.softmax(-1) @ cells.transpose(2, 3)).squeeze(2)  # (B, heads, d)
            CA = torch.einsum("bnd,ncd->bnc", pooled, self._by_head(self.value)).flatten(1)  # (5)
            CA = CA if self.value.bias is None else CA + full(self.value.bias)
        return self.out(CA.to(self.out.weight.dtype)), s.squeeze(2).unflatten(2, F.shape[2:])  # (4)

    def _by_head(self, linear: nn.Linear) -> Tensor:
        """Return the rows of a square matrix for each head: (heads, d / heads, d)."""
        return full(linear.weight).unflatten(0, (self.heads, -1))

    def weights(self) -> Tensor:
        """Return W[l] for the pooled maps of each head, (heads, d[l+1], d): q[l+1] = sum over heads of W CA + b."""
        W = whole(full(self.out.weight))
        parts = torch.eye(self.heads, dtype=W.dtype, device=W.device).repeat_interleave(W.shape[1] // self.heads, 1)
        W = W * parts[:, None]
        return W if self.value is None else W @ whole(full(self.value.weight))

    def offset(self) -> Tensor:
        """Return q[l+1] (d[l+1],) for pooled maps of zeros."""
        W, b = (None if t is None else whole(full(t)) for t in (self.out.weight, self.out.bias))
        value = None if self.value is None or self.value.bias is None else whole(full(self.value.bias))
        assert W is not None
        return nn.functional.linear(W.new_zeros(W.shape[1]) if value is None else value, W, b)


class Stream(nn.Module):
    """Cross-attention of a query with all stages, one after the other.

    Args:
        dims: Channels of each stage.
        queries: Number of learned first queries: one, or one per class.
        heads: See `CrossAttention`.
        projected: See `CrossAttention`.
        bias: See `CrossAttention`.
    """

    def __init__(
        self, dims: Sequence[int], queries: int = 1, heads: int = 1, projected: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, dims[0]))
        steps = zip(dims, [*dims[1:], dims[-1]])
        self.blocks = nn.ModuleList(CrossAttention(d, d_next, heads, projected, bias) for d, d_next in steps)

    def forward(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the last query and the scores (B, heads, h, w) of each stage; `which` selects each first query."""
        q = self.query.expand(len(maps[0]), -1) if which is None else self.query[which]
        device, scores = q.device.type, []
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            for block, F in zip(self.blocks, maps):
                q, s = block(F, q)
                scores.append(s)
        return q, scores

    def initialize(self, convnext: bool) -> None:
        """Initialize as the authors do; ConvNeXt differs from all other networks."""
        nn.init.normal_(self.query, mean=1.0, std=1.0)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            if convnext:
                nn.init.trunc_normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            else:
                nn.init.xavier_uniform_(linear.weight)
