"""Attention of learned queries over the cells of feature maps. Torres et al., CVPR-W 2024, https://arxiv.org/abs/2404.14996

    s[l]   = F[l] q[l] / sqrt(d[l])                                     (1)
    a[l]   = softmax over i of s[l]                                     (2)
    CA[l]  = sum over i of a[l, i] F[l, i]                              (3)
    q[l+1] = W[l] CA[l] + b[l]                                          (4)
    s[l]   = F[l] WK q[l] / sqrt(d[l]), CA[l] = (F[l] WV)' a[l]         (5)  with projected keys and values

F[l]: the maps (d, h, w) of stage l as p = h w cells F[l, i] of length d; for tokens, the patches. q[l]: query (d).
Several heads split d: each has its own scores over its part. Several queries share W and b; the last step averages
them, or W[L] reads them side by side. In (5) keys and values are not computed: F (WK q) = (F WK) q, and WV' (F' a) =
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
    """Step of the stream: pool the maps of a stage and compute the queries of the next.

    Args:
        dim: Channels of the stage.
        dim_next: Channels of the next stage, or of the classifier's input.
        heads: Number of parts into which the channels are split.
        projected: Whether keys and values are linear in the maps (5) or the maps themselves.
        bias: Whether (4) and (5) have biases.
        side_by_side: Number of queries that (4) reads together; 1 reads each alone.
    """

    def __init__(
        self,
        dim: int,
        dim_next: int,
        heads: int = 1,
        projected: bool = False,
        bias: bool = True,
        side_by_side: int = 1,
    ) -> None:
        super().__init__()
        self.heads, self.side_by_side = heads, side_by_side
        self.key = nn.Linear(dim, dim, bias) if projected else None
        self.value = nn.Linear(dim, dim, bias) if projected else None
        self.out = nn.Linear(dim * side_by_side, dim_next, bias)

    def forward(self, F: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next queries (B, m, d') and scores (B, m, heads, h, w), for maps F (B, d, h, w), q (B, m, d)."""
        split = full(q).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, m, d / heads)
        scale = split.shape[-1] ** -0.5
        cells = full(F).flatten(2)  # (B, d, p)
        if self.key is None or self.value is None:
            cells = cells.unflatten(1, (self.heads, -1))  # (B, heads, d / heads, p)
            s = split @ cells * scale  # (1), (B, heads, m, p)
            CA = (s.softmax(-1) @ cells.transpose(2, 3)).transpose(1, 2).flatten(2)  # (2), (3), (B, m, d)
        else:
            cells = cells.unsqueeze(1)
            s = torch.einsum("bnmc,ncd->bnmd", split, self._by_head(self.key)) @ cells  # (5)
            if self.key.bias is not None:
                s = (
                    s
                    + torch.einsum("bnmc,nc->bnm", split, full(self.key.bias).unflatten(0, (self.heads, -1)))[..., None]
                )
            s = s * scale
            pooled = s.softmax(-1) @ cells.transpose(2, 3)  # (B, heads, m, d)
            CA = torch.einsum("bnmd,ncd->bmnc", pooled, self._by_head(self.value)).flatten(2)  # (5)
            CA = CA if self.value.bias is None else CA + full(self.value.bias)
        CA = CA.flatten(1).unsqueeze(1) if self.side_by_side > 1 else CA
        return self.out(CA.to(self.out.weight.dtype)), s.transpose(1, 2).unflatten(3, F.shape[2:])  # (4)

    def _by_head(self, linear: nn.Linear) -> Tensor:
        """Return the rows of a square matrix for each head: (heads, d / heads, d)."""
        return full(linear.weight).unflatten(0, (self.heads, -1))

    def weights(self) -> Tensor:
        """Return W[l] for the pooled maps of each query that it reads and each head, (m heads, d[l+1], d).

        Then q[l+1] = sum over queries and heads of W CA + b.
        """
        W = whole(full(self.out.weight)).unflatten(1, (self.side_by_side, -1)).transpose(0, 1)  # (m, d[l+1], d)
        d = W.shape[2]
        parts = torch.eye(self.heads, dtype=W.dtype, device=W.device).repeat_interleave(d // self.heads, 1)
        W = (W[:, None] * parts[:, None]).flatten(0, 1)
        return W if self.value is None else W @ whole(full(self.value.weight))

    def offset(self) -> Tensor:
        """Return q[l+1] (d[l+1],) for pooled maps of zeros."""
        W, b = (None if t is None else whole(full(t)) for t in (self.out.weight, self.out.bias))
        value = None if self.value is None or self.value.bias is None else whole(full(self.value.bias))
        assert W is not None
        CA = W.new_zeros(W.shape[1]) if value is None else value.repeat(self.side_by_side)
        return nn.functional.linear(CA, W, b)


class Stream(nn.Module):
    """Cross-attention of queries with all stages, one after the other.

    Args:
        dims: Channels of each stage.
        choices: Number of sets of first queries: one, or one per class.
        heads: See `CrossAttention`.
        projected: See `CrossAttention`.
        bias: See `CrossAttention`.
        queries: Number of first queries in a set, m.
        side_by_side: Whether the last step reads all queries together instead of averaging them.
    """

    def __init__(
        self,
        dims: Sequence[int],
        choices: int = 1,
        heads: int = 1,
        projected: bool = False,
        bias: bool = True,
        queries: int = 1,
        side_by_side: bool = False,
    ) -> None:
        super().__init__()
        self.queries = queries
        self.query = nn.Parameter(torch.empty(choices * queries, dims[0]))
        steps = list(zip(dims, [*dims[1:], dims[-1]]))
        together = [1] * (len(steps) - 1) + [queries if side_by_side else 1]
        self.blocks = nn.ModuleList(
            CrossAttention(d, d_next, heads, projected, bias, m) for (d, d_next), m in zip(steps, together)
        )

    def forward(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the last query (B, d) and scores (B, m, heads, h, w) of each stage; `which` selects first queries."""
        q = self.query.unflatten(0, (-1, self.queries))
        q = q.expand(len(maps[0]), -1, -1) if which is None else q[which]  # (B, m, d)
        device, scores = q.device.type, []
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            for block, F in zip(self.blocks, maps):
                q, s = block(F, q)
                scores.append(s)
            return q.mean(1), scores

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
