"""Run attention with its matrix in the graph, and layer-wise relevance propagation as a backward pass.

The backward pass carries s = R / x for relevance R, so that autograd sums over several consumers of x:

    linear:               s_x = W+^T (s y / Z) where x > 0, W-^T (s y / Z) where x < 0,  Z = W+ x+ + W- x-    (1)
    product z = a b:      s_a = b s / 2, s_b = a s / 2                                                        (2)
    residual z = a + b:   s_a = s |a'| / (|a'| + |b'|) * r / a', a' = sum of a s, b' = sum of b s, r = a' + b'  (3)
    softmax, GELU, norm:  s_x = s y / x                                                                       (4)

y: output of the layer for x. (2) holds for matrix products, `einsum` and gates. The sums of (3) are over all values of
one image, with tokens as (B, T, D) or as (T, B, D). Operations that move, scale or average values pass s on as a
gradient. Rules of Chefer et al., CVPR 2021, https://arxiv.org/abs/2012.09838. Functional calls are intercepted during
the forward pass; modules do not change.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._compat import saved_tensors_are_watched
from .activation_gates import RELUS, SMOOTH
from .attention import SOFTMAX, attention_weights, over_last
from .base import full
from .token_shapes import TokenShapes

UNCHANGED = {*SOFTMAX, *SMOOTH, *RELUS, F.layer_norm, F.group_norm, F.batch_norm, F.rms_norm, torch.tanh, Tensor.tanh}
SUMS = {torch.add, Tensor.add}
PRODUCTS = {torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.einsum, torch.mul, Tensor.mul, Tensor.mul_}
RULED = {F.linear, *UNCHANGED, *SUMS, *PRODUCTS} - {Tensor.mul_}  # in-place, changes its input


class OpenAttention(TorchFunctionMode):
    """Mode that computes fused attention in single steps and appends every matrix (B, heads, Q, T) to `found`.

    Args:
        lrp: the backward pass carries relevance, divided by the values, instead of gradients.
        batch: number of images.
    """

    def __init__(self, lrp: bool, batch: int) -> None:
        super().__init__()
        self.lrp, self.batch = lrp, batch
        self.found: list[Tensor] = []
        self.shapes = TokenShapes(batch)
        self.reached = False  # whether gradients were on for any matrix

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not saved_tensors_are_watched():
            return self._run(func, args, kwargs or {})
        # Activation checkpointing would rerun the blocks outside of this mode: keep their saved tensors instead.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return self._run(func, args, kwargs or {})

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        out = self._with_rule(func, args, kwargs) if self.lrp and torch.is_grad_enabled() else func(*args, **kwargs)
        self.shapes.read(func, out)
        return self._keep(out) if func in SOFTMAX and over_last(out, args, kwargs) else out

    def _keep(self, weights: Tensor) -> Tensor:
        if weights.ndim != 4:
            return weights
        self.reached |= torch.is_grad_enabled()
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_()  # the graph starts at the attention of the first block
        self.found.append(weights)
        return weights

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.lrp:
            query, key, value = full(query), full(key), full(value)
            with torch.no_grad():
                weights = attention_weights(query, key, value, *args, **kwargs)
            weights = _Unchanged.apply(self._product(torch.matmul, query, key.transpose(-2, -1)), weights)
        else:
            weights = attention_weights(query, key, value, *args, **kwargs)
        return self._product(torch.matmul, self._keep(weights), value)

    def _product(self, func: Callable[..., Tensor], *args: Any) -> Tensor:
        """Return a product with rule (2): half its gradient."""
        out = func(*args)
        if self.lrp and out.requires_grad:
            out.register_hook(lambda s: s / 2)
        return out

    def _with_rule(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Any = args[0] if args else kwargs.get("input")
        if func in RULED:  # in float32 at least: residual sums cancel
            args = tuple(full(a) if isinstance(a, Tensor) else a for a in args)
            kwargs = {name: full(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
        if func is F.linear:
            return _Linear.apply(*_linear(*args, **kwargs))
        if func in PRODUCTS and not kwargs and sum(isinstance(a, Tensor) and a.requires_grad for a in args) == 2:
            return self._product(func, *args)
        if func in SUMS and len(args) == 2 and not kwargs and _residual(*args):
            return _Sum.apply(*args, self.batch)
        if func is Tensor.add_ and not kwargs and _residual(*args):
            return given.copy_(_Sum.apply(full(given.clone()), full(args[1]), self.batch))
        if func in UNCHANGED:
            x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
            named = {name: value for name, value in kwargs.items() if name != "input"}
            copy = x.clone()
            with torch.no_grad():
                y = func(copy, *rest, **named)
            in_place = y is copy
            return given.copy_(_Unchanged.apply(x.clone(), y)) if in_place else _Unchanged.apply(x, y)
        return func(*args, **kwargs)

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute self-attention of `nn.MultiheadAttention`, tokens (T, B, D), in single steps."""
        masks = [rest.get("attn_mask"), rest.get("key_padding_mask"), bias_k, bias_v]
        if query is not key or key is not value or in_proj_weight is None or any(m is not None for m in masks):
            raise ValueError("expected plain self-attention from nn.MultiheadAttention, got masks or other keys.")
        qkv = self._linear(query, in_proj_weight, in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 1, 3, 0, 4)  # (B, heads, T, d)
        mixed = self._attend(q, k, v).permute(2, 0, 1, 3).flatten(2)
        A = self.found[-1].detach() if rest.get("need_weights", True) else None
        A = A.mean(1) if A is not None and rest.get("average_attn_weights", True) else A
        return self._linear(mixed, out_proj_weight, out_proj_bias), A

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.lrp:
            return F.linear(x, weight, bias)
        return _Linear.apply(full(x), full(weight), None if bias is None else full(bias))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _residual(a: Any, b: Any) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return both and a.shape == b.shape and a.requires_grad and b.requires_grad


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, zero where b is zero."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


class _Linear(torch.autograd.Function):
    """A linear layer with rule (1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, y)
        return y.clone()  # later layers may be in-place

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        x, weight, y = map(full, ctx.saved_tensors)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        Z = F.linear(x.clamp(min=0), up) + F.linear(x.clamp(max=0), down)
        share = divide(full(s) * y, Z)
        return torch.where(x > 0, share @ up, share @ down) * (x != 0), None, None


class _Sum(torch.autograd.Function):
    """A residual sum with rule (3)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, batch: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.dim = 1 if len(a) != batch and a.ndim > 1 and a.shape[1] == batch else 0  # dimension of the images
        return a + b

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        s = full(s)
        others = [d for d in range(s.ndim) if d != ctx.dim]
        shares = [(full(t) * s).sum(others, keepdim=True) if others else full(t) * s for t in ctx.saved_tensors]
        size = shares[0].abs() + shares[1].abs()
        total = shares[0] + shares[1]
        return *[s * divide(divide(share.abs(), size) * total, share) for share in shares], None


class _Unchanged(torch.autograd.Function):
    """A function with rule (4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        x, y = map(full, ctx.saved_tensors)
        return divide(full(s) * y, x), None
