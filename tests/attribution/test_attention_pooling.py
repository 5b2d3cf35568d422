"""Maps of attention that pools, against softmax computed from the weights."""

import pytest
import timm
import torch
import torchvision
from timm.layers import AttentionPool2d, AttentionPoolLatent, RotAttentionPool2d
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import AttentionRollout, RawAttention, TransformerAttribution

Raw = RawAttention(upsample=False)
SIZE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}


def vit(**kwargs):
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(**SIZE, **kwargs).double().eval()
    nn.init.normal_(model.head.weight)
    for name in ("cls_token", "reg_token", "pos_embed"):
        if getattr(model, name, None) is not None:
            nn.init.normal_(getattr(model, name))
    return model


def photographs(batch=2, side=32):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def softmax_of(q, k):
    """Return the mean over heads of exp(q k / sqrt(d)) divided by its sum, for q (heads, d), k (B, heads, T, d)."""
    e = torch.einsum("bhd,bhtd->bht", q.expand(len(k), -1, -1), k).div(k.shape[-1] ** 0.5).exp()
    return (e / e.sum(-1, keepdim=True)).mean(1)


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).movedim(-2, 1)


@pytest.mark.parametrize("kwargs", [{"class_token": False}, {}, {"reg_tokens": 3, "pool_include_prefix": True}])
def test_raw_attention_of_latent_pooling_is_its_softmax(kwargs):
    model = vit(global_pool="map", **kwargs)
    tokens, pool = model.forward_features(photographs()), model.attn_pool
    inside = tokens if model.pool_include_prefix else tokens[:, model.num_prefix_tokens :]
    k = split(pool.kv(inside)[..., :24], pool.num_heads)
    a = softmax_of(pool.q(pool.latent[0, 0]).view(pool.num_heads, -1), k)
    assert_close(Raw(model, photographs()), a[:, -16:].unflatten(1, (4, 4)))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("fused", [True, False])
def test_raw_attention_of_several_latents_is_of_those_read(pool, fused):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 4, 4)
    attend = AttentionPoolLatent(8, num_heads=2, latent_len=3, pool_type=pool)
    attend.fused_attn = fused
    model = nn.Sequential(body, nn.Flatten(2), Transposed(), attend, nn.Linear(8, 3)).double().eval()
    cells = body(photographs()).flatten(2).mT
    maps = [
        softmax_of(attend.q(latent).view(2, -1), split(attend.kv(cells)[..., :8], 2)) for latent in attend.latent[0]
    ]
    expected = maps[0] if pool == "token" else torch.stack(maps).mean(0)
    assert_close(Raw(model, photographs()), expected.unflatten(1, (8, 8)))


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


@pytest.mark.parametrize("kind", [AttentionPool2d, RotAttentionPool2d])
@pytest.mark.parametrize("fused", [True, False])
def test_raw_attention_of_pooled_grid_is_its_softmax(kind, fused):
    torch.manual_seed(0)
    size = {"feat_size": 4} if kind is AttentionPool2d else {"ref_feat_size": 4}
    body, pool = nn.Conv2d(3, 16, 8, 8), kind(16, num_heads=2, head_dim=8, out_features=5, **size)
    pool.fused_attn = fused
    model = nn.Sequential(body, pool).double().eval()
    x = body(photographs()).flatten(2).mT
    x = torch.cat([x.mean(1, keepdim=True), x], 1)
    x = x + pool.pos_embed if kind is AttentionPool2d else x
    q, k, _ = (split(t, 2) for t in pool.qkv(x).chunk(3, -1))
    if kind is RotAttentionPool2d:
        turn = pool.pos_embed.get_embed((4, 4)).to(x)
        k = torch.cat([k[:, :, :1], apply_rot_embed_cat(k[:, :, 1:], turn, half=pool.rotate_half)], 2)
    expected = softmax_of(q[:, :, 0], k)[:, 1:].unflatten(1, (4, 4))
    assert_close(Raw(model, photographs()), expected)


def test_raw_attention_of_class_attention_is_its_softmax():
    torch.manual_seed(0)
    model = timm.models.cait.Cait(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    model = model.double().eval()
    inputs = []
    model.blocks_token_only[-1].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(photographs())
    maps, last, u = Raw(model, photographs()), model.blocks_token_only[-1].attn, inputs[0]
    a = softmax_of(last.q(u[:, 0]).unflatten(1, (2, -1)), split(last.k(u), 2))
    assert_close(maps, a[:, 1:].unflatten(1, (4, 4)))
    assert RawAttention(block=0, upsample=False)(model, photographs()).shape == (2, 4, 4)


@pytest.mark.slow
def test_raw_attention_of_siglip_is_that_of_its_head():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8)
    model = transformers.SiglipVisionModel(config).double().eval()
    maps = Raw(model, photographs(), target="pred", output="pooler_output")
    tokens, head = model(photographs()).last_hidden_state, getattr(model, "vision_model", model).head
    W, b = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    a = softmax_of((head.probe[0, 0] @ W[0].T + b[0]).view(2, -1), split(tokens @ W[1].T + b[1], 2))
    assert_close(maps, a.unflatten(1, (4, 4)))


@pytest.mark.parametrize("prefix", [1, 2, 5, 16])
@pytest.mark.parametrize("pool", ["token", "avg", "registers"])
def test_prefix_tokens_never_enter_the_grid(prefix, pool):
    """A register has no cell, and no row where the output does not depend on it."""
    registers = pool == "registers"
    model = vit(
        class_token=not registers,
        reg_tokens=prefix if registers else prefix - 1,
        global_pool="avg" if registers else pool,
    )
    assert model.num_prefix_tokens == prefix
    x = model.patch_embed(photographs())
    x = model.blocks[0](model.norm_pre(model._pos_embed(x)))
    block = model.blocks[1]
    q, k, _ = (split(t, 2) for t in block.attn.qkv(block.norm1(x)).chunk(3, -1))
    A = (q @ k.mT / 12**0.5).softmax(-1).mean(1)
    row = A[:, 0] if pool == "token" else A[:, prefix:].mean(1)
    assert_close(Raw(model, photographs()), row[:, prefix:].unflatten(1, (4, 4)))
    for method in (AttentionRollout(upsample=False), TransformerAttribution(upsample=False)):
        assert method(model, photographs()).shape == (2, 4, 4)


@pytest.mark.parametrize("method", [AttentionRollout(), TransformerAttribution()])
def test_rollout_and_attribution_refuse_attention_that_pools(method):
    with pytest.raises(ValueError, match="use RawAttention where attention pools"):
        method(vit(global_pool="map"), photographs())


class ChannelAttention(nn.Module):
    """Attention of 16 channels to each other, a square matrix whose size is that of a grid of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.patch, self.mix, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, images):
        q, k, v = (t.mT[:, None] for t in self.mix(self.patch(images).flatten(2).mT).chunk(3, -1))
        return self.head(((q @ k.mT).softmax(-1) @ v)[:, 0].mean(-1))


@pytest.mark.parametrize("method", [RawAttention(), AttentionRollout(), TransformerAttribution()])
def test_attention_over_channels_is_no_map(method):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"expected a transformer .* got ChannelAttention with attention of shapes"):
        method(ChannelAttention().double().eval(), photographs())


def test_raw_attention_refuses_latents_that_attend_to_latents():
    torch.manual_seed(0)
    attend, mix = AttentionPoolLatent(8, num_heads=2, latent_len=9, pool_type=""), nn.MultiheadAttention(8, 2)

    class Resampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.attend, self.mix, self.head = nn.Conv2d(3, 8, 8, 8), attend, mix, nn.Linear(8, 3)

        def forward(self, images):
            x = self.attend(self.body(images).flatten(2).mT).transpose(0, 1)
            return self.head(self.mix(x, x, x)[0].mean(0))

    model = Resampler().double().eval()
    with pytest.raises(ValueError, match="whose block -1 reads the patches"):
        Raw(model, photographs())
    assert RawAttention(block=0, upsample=False)(model, photographs()).shape == (2, 4, 4)


def test_raw_attention_refuses_torchvision_networks_without_attention():
    with pytest.raises(ValueError, match=r"got ResNet with attention of shapes \[\]"):
        Raw(torchvision.models.resnet18(num_classes=2).double(), photographs())
