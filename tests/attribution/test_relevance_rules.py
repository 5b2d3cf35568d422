"""Relevance of whole transformer blocks: by hand, its conservation, and every way in which blocks are written."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tally import Tally
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from interpretable_training.attribution import TransformerAttribution
from interpretable_training.attribution.core.relevance import OpenAttention

D, HEADS = 24, 2
BOTH = pytest.mark.parametrize("relevance", ["lrp", "attn"])


class Block(nn.Module):
    """A pre-norm block with an MLP, written in one of the ways in which models write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.mha = nn.MultiheadAttention(D, HEADS, batch_first=kind != "time")
        self.mlp = nn.Sequential(
            nn.Linear(D, 48), nn.ReLU() if kind.startswith("relu") else nn.GELU(), nn.Linear(48, D)
        )
        self.seen = Tally()
        for p in self.parameters():
            nn.init.normal_(p, 1 if p is self.norm1.weight or p is self.norm2.weight else 0, 0.5)

    def attend(self, x):
        h = self.norm1(x)
        if self.kind in ("nn", "time"):
            return self.mha(h, h, h, need_weights=False)[0]
        if self.kind == "weights":
            out, weights = self.mha(h, h, h)
            self.seen.append(weights)
            return out
        q, k, v = F.linear(h, self.mha.in_proj_weight, self.mha.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2) for t in (q, k, v))
        if self.kind == "einsum":
            A = (torch.einsum("bhid,bhjd->bhij", q, k) * (D // HEADS) ** -0.5).softmax(-1)
            mixed = torch.einsum("bhij,bhjd->bhid", A, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.mha.out_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        if self.kind == "checkpoint":
            return checkpoint(self.run, x, use_reentrant=False)
        if self.kind == "reentrant":
            return checkpoint(self.run, x, use_reentrant=True)
        return self.run(x)

    def run(self, x):
        out = self.attend(x)
        if self.kind == "in place":
            out.mul_(1.0).add_(x)
            h = self.mlp(self.norm2(out))
            h.add_(out)
            return h
        x = x + out
        if self.kind == "relu in place":
            h = self.mlp[0](self.norm2(x))
            F.relu_(h)
            return x + self.mlp[2](h)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels behind a class token and registers; reads the class token, or the mean of the patches."""

    def __init__(self, kind: str = "nn", blocks: int = 2, prefix: int = 1, read: str = "cls") -> None:
        super().__init__()
        self.patch, self.front = nn.Conv2d(3, D, 4, 4), nn.Parameter(torch.randn(1, prefix, D))
        self.blocks, self.head = nn.Sequential(*[Block(kind) for _ in range(blocks)]), nn.Linear(D, 4)
        self.kind, self.num_prefix_tokens, self.read = kind, prefix, read

    def tokens(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.front.to(x.dtype).expand(len(x), -1, -1), x], 1)

    def top(self, x):
        x = self.blocks(x.transpose(0, 1)).transpose(0, 1) if self.kind == "time" else self.blocks(x)
        return self.head(x[:, 0] if self.read == "cls" else x[:, self.num_prefix_tokens :].mean(1))

    def forward(self, x):
        return self.top(self.tokens(x))


def build(*args, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(*args, **options).double().eval().requires_grad_(False)


@pytest.fixture(name="x")
def pictures():
    return torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def explain(model, x, target=1, relevance="lrp"):
    return TransformerAttribution(relevance=relevance, upsample=False)(model, x, target)


def linear(R, x, layer):
    """Every positive product w x gets its share, in loops."""
    W, total = layer.weight.numpy() if isinstance(layer, nn.Module) else layer.numpy(), np.zeros_like(x)
    for t, i in np.ndindex(len(x), len(W)):
        z = np.maximum(x[t] * W[i], 0)
        total[t] += z / z.sum() * R[t, i] if z.sum() > 0 else 0
    return total


def add(R, a, b):
    """Each term by its part of the sum, both scaled so that the sizes of their totals share the whole."""
    a, b = a * R / (a + b), b * R / (a + b)
    sizes = abs(a.sum()), abs(b.sum())
    return [t * R.sum() * size / sum(sizes) / t.sum() for t, size in zip((a, b), sizes)]


def by_hand(model, x, target):
    """R of the attention of a network of one block, (heads, T, T)."""
    block = model.blocks[0]
    h0 = model.tokens(x)
    normed = block.norm1(h0)
    q, k, v = F.linear(normed, block.mha.in_proj_weight, block.mha.in_proj_bias)[0].chunk(3, -1)
    d = D // HEADS
    A = [(q[:, i : i + d] @ k[:, i : i + d].T / d**0.5).softmax(1) for i in range(0, D, d)]
    mixed = torch.cat([a @ v[:, i * d : (i + 1) * d] for i, a in enumerate(A)], 1)
    out = block.mha.out_proj(mixed)
    h1 = h0[0] + out
    hidden = block.mlp[0](block.norm2(h1))
    wide = block.mlp[1](hidden)
    up = block.mlp[2](wide)
    values = (out, h0[0], h1, wide, up, mixed, block.norm2(h1), v)
    out, h0, h1, wide, up, mixed, normed2, v = (t.numpy() for t in values)

    R = np.zeros((len(h1), D))
    one = np.eye(4)[[target]]
    R[:1] = linear(one, h1[:1] + up[:1], model.head)
    R_h1, R_up = add(R, h1, up)
    R_wide = linear(R_up, wide, block.mlp[2])
    R_h1 = R_h1 + linear(R_wide, normed2, block.mlp[0])  # GELU and norm pass relevance on; h1 was read twice
    _, R_out = add(R_h1, h0, out)
    R_mixed = linear(R_out, mixed, block.mha.out_proj)
    R_A = np.zeros((HEADS, len(h1), len(h1)))
    for i, t, j in np.ndindex(R_A.shape):
        for c in range(i * d, (i + 1) * d):
            R_A[i, t, j] += A[i][t, j].item() * v[j, c] / mixed[t, c] * R_mixed[t, c] / 2
    return R_A


def test_lrp_of_one_block_by_hand(x):
    model = build(blocks=1)
    with OpenAttention(False, 3) as mode:
        y = model(x.clone().requires_grad_())
    dA = torch.autograd.grad(y[:, 1].sum(), mode.found)[0].numpy()
    S = explain(model, x)
    for i in range(3):
        C = np.maximum(dA[i] * by_hand(model, x[i : i + 1], 1), 0).mean(0)
        assert_close(S[i].flatten(), torch.from_numpy(C[0, 1:]), rtol=1e-6, atol=1e-12)


class Gated(nn.Module):
    """An MLP whose product of two halves is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 96), nn.Linear(48, D)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


@pytest.mark.parametrize("kind", ["nn", "einsum", "in place", "time", "gated"])
@pytest.mark.parametrize("read", ["cls", "mean"])
def test_lrp_conserves_relevance_to_the_tokens(kind, read, x):
    """Every rule conserves relevance, as long as each output has some positive product, which width sees to."""
    model = build(kind, read=read)
    if kind == "gated":
        for block in model.blocks:
            block.mlp = Gated().double().requires_grad_(False)
    tokens = model.tokens(x).requires_grad_()
    with OpenAttention(True, 3):
        y = model.top(tokens)[:, 2]
    assert_close(y.detach(), model(x)[:, 2])
    (s,) = torch.autograd.grad(y, tokens, 1 / y.detach())
    assert_close((s * tokens).sum((1, 2)).detach(), torch.ones(3, dtype=torch.float64))


@BOTH
@pytest.mark.parametrize("kind", ["fused", "einsum", "in place", "checkpoint", "time", "weights"])
def test_transformer_attribution_equal_for_block_implementations(kind, relevance, x):
    model = build(kind)
    assert_close(explain(model, x, relevance=relevance), explain(build("nn"), x, relevance=relevance))
    if kind == "weights":
        row_sums = model.blocks[0].seen[-1].sum(-1)
        assert_close(row_sums, torch.ones_like(row_sums))


@BOTH
def test_transformer_attribution_of_in_place_relu(relevance, x):
    expected = explain(build("relu"), x, relevance=relevance)
    assert_close(explain(build("relu in place"), x, relevance=relevance), expected)


@BOTH
@pytest.mark.parametrize("kind", ["nn", "time"])
def test_transformer_attribution_of_batch_equals_images_alone(kind, relevance, x):
    model, target = build(kind), [2, 0, 3]
    together = explain(model, x, target, relevance)
    for i in range(3):
        assert_close(together[i : i + 1], explain(model, x[i : i + 1], target[i : i + 1], relevance))


@BOTH
def test_transformer_attribution_refuses_reentrant_checkpoint(relevance, x):
    with pytest.raises(RuntimeError, match="gradients to be on where attention runs"):
        explain(build("reentrant"), x, relevance=relevance)


@pytest.mark.parametrize("prefix", [1, 4])
@pytest.mark.parametrize("blocks", [1, 2])
def test_transformer_attribution_of_averaged_patches_by_hand(prefix, blocks, x):
    """The class token and registers, which nobody reads behind the last block, do not."""
    model = build(prefix=prefix, blocks=blocks, read="mean")
    with OpenAttention(False, 3) as mode:
        y = model(x.clone().requires_grad_())
    A = [a.detach() for a in mode.found]
    dA = torch.autograd.grad(y[:, 1].sum(), mode.found)
    R = torch.eye(6 + prefix, dtype=torch.float64).expand(3, -1, -1)
    for a, g in zip(A, dA):
        R = R + (a * g).clamp(min=0).mean(1) @ R
    expected = sum(R[:, t, prefix:] for t in range(prefix, 6 + prefix)) / 6
    assert_close(explain(model, x, relevance="attn").flatten(1), expected)


@BOTH
@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_transformer_attribution_with_register_tokens(prefix, relevance, x):
    S = explain(build(prefix=prefix), x, relevance=relevance)
    assert S.shape == (3, 2, 3)
    assert (S.flatten(1).amax(1) > S.flatten(1).amin(1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_attribution_under_autocast(dtype, x):
    model = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        S = explain(model, x.to(dtype))
    expected = explain(model, x.to(dtype).float())
    assert S.dtype == torch.float32
    assert torch.corrcoef(torch.stack([S.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_lrp_is_not_rounded_by_autocast(x):
    model, seen = build().float(), Tally()
    model.patch.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        explain(model, x.float())
    assert seen == [torch.bfloat16, torch.float32]


@BOTH
def test_transformer_attribution_in_half_precision_in_place(relevance, x):
    S = explain(build("in place").bfloat16(), x, relevance=relevance)
    expected = explain(build("in place").float(), x, relevance=relevance)
    assert torch.corrcoef(torch.stack([S.flatten(), expected.flatten().to(S.dtype)]))[0, 1] > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lrp_keeps_in_place_calls_in_place(dtype):
    start = torch.tensor([[-1.0, 2.0], [3.0, -4.0]], dtype=dtype).requires_grad_()
    x, y = start * 1, start * 3
    with OpenAttention(True, 2):
        x.mul_(2)
        x.add_(1)
        x.add_(y)
        F.relu_(x)
    assert_close(x.detach(), torch.tensor([[0.0, 11.0], [16.0, 0.0]], dtype=dtype))


def test_transformer_attribution_refuses_window_attention(function):
    """The error lists the shapes of the attention."""
    patch, mha = nn.Conv2d(3, D, 4, 4), nn.MultiheadAttention(D, HEADS, batch_first=True)

    def forward(x, patch, mha):
        halves = patch(x).flatten(2).transpose(1, 2).unflatten(1, (2, -1)).flatten(0, 1)
        return mha(halves, halves, halves, need_weights=False)[0].unflatten(0, (-1, 2)).mean((1, 2))

    with pytest.raises(ValueError, match=r"attention of shapes \[\(6, 2, 12, 12\)\]"):
        explain(function(forward, patch=patch, mha=mha), torch.randn(3, 3, 16, 24))
