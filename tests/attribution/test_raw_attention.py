import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import AttentionRollout, RawAttention, degenerate

KINDS = ["nn", "nn encoder", "fused", "explicit", "method"]
D, HEADS = 6, 2


class Block(nn.Module):
    """One self-attention, written in one of the ways in which models write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "nn encoder":
            self.layer = nn.TransformerEncoderLayer(D, HEADS, 8, batch_first=True)
            self.mha = self.layer.self_attn
        else:
            self.mha = nn.MultiheadAttention(D, HEADS, batch_first=True)

    def heads(self, x):
        q, k, v = F.linear(x, self.mha.in_proj_weight, self.mha.in_proj_bias).chunk(3, -1)
        return [t.unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2) for t in (q, k, v)]

    def attention(self, x):
        """softmax(q k / sqrt(d)), head by head and row by row."""
        q, k, _ = self.heads(x)
        A = torch.zeros(len(x), HEADS, x.shape[1], x.shape[1], dtype=x.dtype)
        for h in range(HEADS):
            for t in range(x.shape[1]):
                e = (q[:, h, t, None] * k[:, h]).sum(-1).div((D // HEADS) ** 0.5).exp()
                A[:, h, t] = e / e.sum(1, keepdim=True)
        return A

    def forward(self, x):
        if self.kind == "nn encoder":
            return self.layer(x)
        if self.kind == "nn":
            return x + self.mha(x, x, x, need_weights=False)[0]
        q, k, v = self.heads(x)
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            mixed = (torch.softmax(scores, -1) if self.kind == "explicit" else scores.softmax(dim=-1)) @ v
        return x + self.mha.out_proj(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels behind an optional class token, two blocks and a head."""

    def __init__(self, kind: str, cls: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, D, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, D)) if cls else None
        self.blocks = nn.ModuleList([Block(kind), Block(kind)])
        self.head = nn.Linear(D, 3)

    def tokens(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return x if self.cls is None else torch.cat([self.cls.expand(len(x), -1, -1), x], 1)

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0] if self.cls is not None else x.mean(1))

    def attentions(self, x):
        """A of every block by hand."""
        x, found = self.tokens(x), []
        for block in self.blocks:
            found.append(block.attention(x))
            x = block(x)
        return [A.detach() for A in found]


@pytest.fixture
def build():
    def make(kind, cls=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Transformer(kind, cls).double().eval()

    return make


@pytest.fixture
def picture():
    return torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def patches(row):
    return row.unflatten(1, (2, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [-1, 0])
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_the_row_of_the_class_token_in_one_block(kind, block, heads, build, picture):
    model = build(kind)
    A = model.attentions(picture)[block]
    fused = {"mean": A.sum(1) / HEADS, "max": A.amax(1), "min": A.amin(1)}[heads]
    S = RawAttention(heads=heads, block=block, upsample=False)(model, picture)
    assert_close(S, patches(fused[:, 0, 1:]), rtol=0, atol=1e-9)
    if heads == "mean":
        assert_close(S.sum((1, 2)), 1 - fused[:, 0, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_class_token_it_is_the_mean_of_all_rows(kind, build, picture):
    model = build(kind, cls=False)
    S = RawAttention(upsample=False)(model, picture)
    assert_close(S, patches(model.attentions(picture)[-1].mean((1, 2))), rtol=0, atol=1e-9)


@pytest.mark.parametrize("corners", [False, True])
def test_the_map_is_upsampled_bilinearly(corners, build, picture):
    low = RawAttention(upsample=False)(build("fused"), picture)
    up = F.interpolate(low[:, None], (8, 12), mode="bilinear", align_corners=corners)[:, 0]
    assert_close(RawAttention(align_corners=corners)(build("fused"), picture), up)


def test_queries_of_zero_give_a_constant_map(build, picture):
    """Attention is uniform: 1 / 7 for each of the tokens."""
    model = build("nn")
    for block in model.blocks:
        block.mha.in_proj_weight.data[:D] = 0
        block.mha.in_proj_bias.data[:D] = 0
    S = RawAttention()(model, picture)
    assert_close(S, torch.full_like(S, 1 / 7), rtol=0, atol=1e-9)
    assert degenerate(S).all()


def test_a_model_that_uses_its_attention_weights_gets_the_ones_it_asked_for(function, build, picture):
    """nn.MultiheadAttention returns the mean over heads (B, T, T) unless asked for the heads."""
    model = build("nn")

    def forward(x, model):
        x = model.tokens(x)
        _, weights = model.blocks[0].mha(x, x, x)
        assert weights.shape == (len(x), 7, 7)
        return model.head((weights @ x)[:, 0])

    S = RawAttention(upsample=False)(function(forward, model=model), picture)
    expected = model.attentions(picture)[0].mean(1)[:, 0, 1:]
    assert_close(S, patches(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [RawAttention(), AttentionRollout()])
def test_a_model_without_attention_is_refused(method, network, images):
    with pytest.raises(ValueError, match=r"expected a transformer .* such as GradCAM"):
        method(network, images)


@pytest.mark.parametrize("block", [2, -3])
def test_a_block_that_is_not_there_is_refused(block, build, picture):
    with pytest.raises(ValueError, match=f"2 blocks.*{block}|{block}.*2 blocks"):
        RawAttention(block=block)(build("nn"), picture)


def test_other_heads_are_refused(build, picture):
    with pytest.raises(ValueError, match=r"'mean', 'max', 'min'.*got 'sum'"):
        RawAttention(heads="sum")(build("nn"), picture)
