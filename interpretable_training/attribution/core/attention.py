"""Record the attention of a transformer during its forward pass: (B, heads, Q, T) of each attention, in order.

Self-attention has Q = T tokens. Attention that pools has few queries: a learned one (timm's `AttentionPoolLatent`, the
head of SigLIP), or the class token's (CaiT). Fused kernels do not return the attention matrix. Functional calls are
intercepted during the forward pass and the softmax is computed a second time to record it; modules do not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .feature_grids import Grid, find_grid
from .prepared_model import PreparedModel
from .targets import Resolved, check_scores
from .token_shapes import TokenShapes

SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


class AttentionRecorder(TorchFunctionMode):
    """Mode that appends every attention matrix (B, heads, Q, T) of a forward pass to `found`.

    Args:
        batch: number of images.
        followed: start a graph at the output of each attention, so that gradients reach that of the last.
    """

    def __init__(self, batch: int, followed: bool = False) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.shapes = TokenShapes(batch)
        self.followed = followed
        self.last: tuple[Tensor, int] | None = None  # output of the last attention, and its dimension of queries
        self._pending: list[Tensor] = []  # softmax outputs that are attention if they are multiplied by values

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.multi_head_attention_forward:
            need_weights = kwargs.get("need_weights", True)  # `nn.MultiheadAttention` passes it by name
            average = kwargs.get("average_attn_weights", True)
            out, weights = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
            out = self._keep(weights, out, 0)
            return out, (weights.mean(-3) if average else weights) if need_weights else None
        if func is F.scaled_dot_product_attention:
            return self._keep(attention_weights(*args, **kwargs), func(*args, **kwargs), -2)
        out = func(*args, **kwargs)
        self.shapes.read(func, out)
        if func in SOFTMAX and over_last(out, args, kwargs):
            if out.shape[-1] == out.shape[-2]:
                return self._keep(out, out, -2)
            self._pending = [out]
        elif func in MATMUL and any(out_of is args[0] for out_of in self._pending):
            self._pending = []
            return self._keep(args[0], out, -2)
        return out

    def _keep(self, weights: Tensor, out: Tensor, dim: int) -> Tensor:
        """Record attention, and return its output, the start of a graph if it is followed."""
        if weights.ndim != 4:
            return out
        self.found.append(weights)
        if self.followed:
            out = out.detach().requires_grad_()
            self.last = out, dim
        return out


def over_last(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether softmax ran over the last of four dimensions."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return isinstance(out, Tensor) and out.ndim == 4 and dim in (-1, 3)


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention matrix that `F.scaled_dot_product_attention` uses for the same arguments."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


@torch.no_grad()
def attention_of(prepared: PreparedModel, images: Tensor, target: Resolved) -> tuple[list[Tensor], TokenShapes]:
    """Return the attention of all blocks, (B, heads, Q, T) each, and the shapes of tokens."""
    with AttentionRecorder(len(images)) as recorder:
        output = prepared.run(images)
    if isinstance(target, Tensor):
        prepared.confirm_in(output, target)  # attention does not depend on the class, but the class must exist
    return recorder.found, recorder.shapes


def one_grid(prepared: PreparedModel, images: Tensor, matrices: Sequence[Tensor], shapes: TokenShapes) -> Grid:
    """Return the grid of the tokens in all attention matrices; raise an error unless all see the same tokens."""
    same = len({weights.shape for weights in matrices}) == 1 and matrices[0].shape[-1] == matrices[0].shape[-2]
    grid = token_grid(prepared, images, matrices[0], shapes) if same else None
    if grid is None:
        raise ValueError(
            f"expected a transformer whose self-attentions all see the same tokens of the whole image, got "
            f"{type(prepared.module).__name__} with attention of shapes {_shapes(matrices)}; use RawAttention where "
            "attention pools, or a method of layers, such as GradCAM."
        )
    return grid


def token_grid(prepared: PreparedModel, images: Tensor, weights: Tensor, shapes: TokenShapes) -> Grid | None:
    """Return the grid of the tokens that attention (B, heads, Q, T) reads; None if they are not those of the images."""
    tokens = weights.shape[-1]
    if len(weights) != len(images) or (shapes.tokens and tokens not in shapes.tokens):
        return None
    size = images.shape[2:]
    if shapes.grids:
        return shapes.grid(tokens, size)
    prefixes = [getattr(m, "num_prefix_tokens", None) for m in prepared.module.modules()]
    prefix = next((p for p in prefixes if isinstance(p, int)), None)
    shape = (len(images), tokens, 1)
    return find_grid(shape, size, prefix) or find_grid(shape, size)


def _shapes(matrices: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return sorted({tuple(weights.shape) for weights in matrices})


def rows_read(prepared: PreparedModel, images: Tensor, target: Resolved) -> list[int]:
    """Return the queries of the last attention on which the output depends; none where that cannot be computed.

    Whether it does is the same for every image: the gradient at each query's output is zero or not, of one image.
    """
    one = images[:1]
    with torch.enable_grad(), AttentionRecorder(1, followed=True) as recorder:
        output = prepared.run(one)
        y = check_scores(target(output), output, 1, False) if callable(target) else prepared.logits_in(output)
    if recorder.last is None or not y.requires_grad:
        return []
    out, dim = recorder.last
    generator = torch.Generator().manual_seed(0)  # a plain sum of normalized outputs would have the gradient zero
    weight = torch.randn(y.shape, generator=generator, device="cpu").to(y)
    (slope,) = torch.autograd.grad(y, out, weight, allow_unused=True)
    if slope is None:
        return []
    return slope.movedim(dim, 0).flatten(1).any(1).nonzero()[:, 0].tolist()


def on_patches(rows: Tensor, grid: Grid, read: Sequence[int] = ()) -> Tensor:
    """Return the attention to each patch, (B, h, w), from attention (B, Q, T).

    This is the mean of the rows that are `read`: those of class tokens if there are any, otherwise of the patches.
    """
    index = torch.tensor(list(read), device=rows.device)
    return rows.index_select(1, index).mean(1)[:, grid.prefix :].unflatten(1, grid.shape)


def reading_rows(
    prepared: PreparedModel, images: Tensor, target: Resolved, matrices: Sequence[Tensor], block: int, prefix: int
) -> list[int]:
    """Return the rows of the attention of a block that its map is the mean of.

    In the last block these are the rows on which the output depends, without those of patches where it depends on the
    class token. Other blocks have the same class tokens.
    """
    last, weights = matrices[-1], matrices[block]
    queries, tokens = weights.shape[-2:]
    pooled = last.shape[-2] != last.shape[-1]
    read = [] if last.shape[-2] == 1 or (not pooled and not prefix) else rows_read(prepared, images, target)
    if queries != tokens:
        return read if weights is last and read else list(range(queries))
    classes = [row for row in read if row < prefix] if not pooled else []
    if not read and not pooled and prefix:
        classes = [0]
    return classes or list(range(prefix, tokens))
