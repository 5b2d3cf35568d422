import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.networks import ATTENTION_KINDS, patch_grid, patch_transformer
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import TransformerAttribution

Attention = TransformerAttribution(relevance="attn", upsample=False)
Lrp = TransformerAttribution(upsample=False)


def slopes(model, x, target):
    """A and dy/dA of every block, by an explicit forward pass."""
    x, maps = model.tokens(x), []
    for block in model.blocks:
        A = block.attention(x)
        maps.append(A)
        _, _, v = block.heads(x)
        x = x + block.mha.out_proj((A @ v).transpose(1, 2).flatten(2))
    y = model.head(x[:, 0] if model.cls is not None else x.mean(1))[range(len(x)), target]
    return [A.detach() for A in maps], torch.autograd.grad(y.sum(), maps)


@pytest.mark.parametrize("kind", [k for k in ATTENTION_KINDS if k != "nn encoder"])
@pytest.mark.parametrize("cls", [True, False])
def test_transformer_attribution_attn_rolls_out_gradients(kind, cls, picture):
    model, target = patch_transformer(kind, cls), [2, 0]
    R = torch.eye(7 if cls else 6, dtype=torch.float64).expand(2, -1, -1)
    for A, dA in zip(*slopes(model, picture, target)):
        C = torch.zeros_like(R)
        for h in range(A.shape[1]):
            C = C + (A[:, h] * dA[:, h]).clamp(min=0) / A.shape[1]
        R = R + C @ R
    row = R[:, 0, 1:] if cls else R.mean(1)
    assert_close(Attention(model, picture, target), patch_grid(row))


def test_transformer_attribution_of_one_block_by_hand(picture):
    model = patch_transformer("fused")
    A, dA = (pair[1] for pair in slopes(model, picture, [1, 1]))
    last = TransformerAttribution(relevance="attn", upsample=False, start_layer=1)
    assert_close(last(model, picture, 1), patch_grid((A * dA).clamp(min=0).mean(1)[:, 0, 1:]))


class Relevance:
    """The rules in terms of relevance itself, for one image and one module after the other."""

    def __init__(self, model, x, target):
        self.model, self.target = model, target
        self.steps = []
        x = model.tokens(x)
        for block in model.blocks:
            q, k, v = block.heads(x)
            A = block.attention(x)
            mixed = (A @ v).transpose(1, 2).flatten(2)
            out = block.mha.out_proj(mixed)
            self.steps.append((x, q, k, v, A, mixed, out))
            x = x + out
        self.last = x

    def linear(self, R, x, weight):
        """Each positive product w x gets its share."""
        result = torch.zeros_like(x)
        flat_R, flat_x, flat = R.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1]), result.view(-1, x.shape[-1])
        for row in range(len(flat_x)):
            z = (flat_x[row] * weight).clamp(min=0)  # (out, in): x+ w+ + x- w-
            total = z.sum(1, keepdim=True)
            flat[row] = torch.where(total > 0, z / total.clamp(min=1e-300) * flat_R[row][:, None], 0).sum(0)
        return result

    def matrices(self):
        R = torch.zeros_like(self.model.head(self.last[:, 0]))
        R[0, self.target] = 1
        top = torch.zeros_like(self.last)
        top[:, 0] = self.linear(R, self.last[:, 0], self.model.head.weight)
        relevances = []
        for block, (x, q, k, v, A, mixed, out) in reversed(list(zip(self.model.blocks, self.steps))):
            z = x + out
            a, b = x * top / z, out * top / z  # the residual sum
            whole, sizes = top.sum(), a.sum().abs() + b.sum().abs()
            a, b = (t * (t.sum().abs() / sizes * whole) / t.sum() for t in (a, b))
            r = self.linear(b, mixed, block.mha.out_proj.weight)
            r = (r / mixed).unflatten(2, (A.shape[1], -1)).transpose(1, 2)  # (1, heads, T, d)
            R_A = A * (r @ v.transpose(-2, -1)) / 2
            R_v = v * (A.transpose(-2, -1) @ r) / 2
            relevances.append(R_A)
            share = R_A / (q @ k.transpose(-2, -1))  # softmax passes relevance on unchanged
            R_q, R_k = q * (share @ k) / 2, k * (share.transpose(-2, -1) @ q) / 2
            R_qkv = torch.cat([t.transpose(1, 2).flatten(2) for t in (R_q, R_k, R_v)], 2)
            down = self.linear(R_qkv, x, block.mha.in_proj_weight)
            top = x * (a / x + down / x)  # x was read twice
        return relevances[::-1]


@pytest.mark.parametrize("kind", [k for k in ATTENTION_KINDS if k != "nn encoder"])
def test_lrp_equals_its_rules_step_by_step(kind, picture):
    model, target = patch_transformer(kind), [2, 0]
    S = Lrp(model, picture, target)
    _, dA = slopes(model, picture, target)
    for i in range(2):
        with torch.no_grad():
            relevance = Relevance(model, picture[i : i + 1], target[i]).matrices()
        R = torch.eye(7, dtype=torch.float64)[None]
        for g, r in zip(dA, relevance):
            R = R + (g[i : i + 1] * r).clamp(min=0).mean(1) @ R
        assert_close(S[i : i + 1], patch_grid(R[:, 0, 1:]), rtol=1e-6, atol=1e-9)


def test_lrp_differs_from_attn_and_between_classes(picture):
    model = patch_transformer("fused")
    assert not torch.allclose(Lrp(model, picture, 1), Attention(model, picture, 1), rtol=1e-2)
    assert not torch.allclose(Lrp(model, picture, 1), Lrp(model, picture, 0), rtol=1e-2)


@pytest.mark.parametrize("method", [Lrp, Attention], ids=["lrp", "attention"])
def test_transformer_attribution_of_zero_head_is_zero(method, picture):
    model = patch_transformer("fused")
    model.head.weight.data.zero_()
    assert not method(model, picture, 1).any()


class PreNorm(nn.Module):
    """An encoder layer with GELU and layer norm, as in the vision transformers of libraries."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, activation=F.gelu, batch_first=True, norm_first=True)
        self.patch, self.cls = nn.Conv2d(2, 6, 4, 4), nn.Parameter(torch.randn(1, 1, 6))
        self.blocks, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))[:, 0])


@pytest.mark.parametrize("method", [Lrp, Attention], ids=["lrp", "attention"])
def test_transformer_attribution_of_torch_encoder(method, picture):
    torch.manual_seed(0)
    model = PreNorm().double().eval()
    S = method(model, picture, 1)
    assert S.shape == (2, 2, 3)
    assert S.any()


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lrp, Attention], ids=["lrp", "attention"])
@pytest.mark.parametrize("name", ["torchvision", "timm", "deit", "deit3"])
def test_transformer_attribution_of_timm_and_torchvision(method, name):
    """Logits stay what they are, fused or not, and the same blocks are found in every library."""
    import timm

    torch.manual_seed(0)
    if name == "torchvision":
        model = torchvision.models.VisionTransformer(64, 16, 3, 4, 48, 96, num_classes=5).eval()
        nn.init.normal_(model.heads.head.weight)
    else:
        names = {"timm": "vit_tiny_patch16_224", "deit": "deit_tiny_distilled_patch16_224"}
        size = {"img_size": 64, "depth": 3, "num_classes": 5}
        model = timm.create_model(names.get(name, "deit3_small_patch16_224"), pretrained=False, **size).eval()
        nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 64, 64)
    S = method(model, x, [1, 4])
    assert S.shape == (2, 4, 4)
    assert S.isfinite().all()
    assert (S.flatten(1).std(1) > 0).all()
    assert_close(method(model, x[1:], [4])[0], S[1], rtol=1e-3, atol=1e-3 * float(S[1].max()))


def test_transformer_attribution_refuses_masks_and_other_keys(function, picture):
    mha = nn.MultiheadAttention(6, 2, batch_first=True)
    patch = nn.Conv2d(2, 6, 4, 4)

    def forward(x, mha, patch):
        x = patch(x).flatten(2).transpose(1, 2)
        return mha(x, x, x + 1)[0].mean(1)

    with pytest.raises(ValueError, match="plain self-attention"):
        Attention(function(forward, mha=mha, patch=patch), picture.float())


@pytest.mark.parametrize(("start", "match"), [(-1, "of at least 0 and .* got -1"), (2, "from 0 to 1, got 2")])
def test_transformer_attribution_refuses_missing_block(start, match, picture):
    with pytest.raises(ValueError, match=match):
        TransformerAttribution(start_layer=start)(patch_transformer("fused"), picture)


def test_transformer_attribution_refuses_model_without_attention(network, images):
    with pytest.raises(ValueError, match="expected a transformer"):
        Lrp(network, images)
