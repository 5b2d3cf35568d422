import pytest
import torch
import torch.nn.functional as F
from support.networks import ATTENTION_KINDS, DIM, HEADS, patch_grid, patch_transformer
from torch.testing import assert_close

from interpretable_training.attribution import AttentionRollout, RawAttention, degenerate


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@pytest.mark.parametrize("block", [-1, 0])
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_raw_attention_is_row_of_class_token(kind, block, heads, picture):
    model = patch_transformer(kind)
    A = model.attentions(picture)[block]
    fused = {"mean": A.sum(1) / HEADS, "max": A.amax(1), "min": A.amin(1)}[heads]
    S = RawAttention(heads=heads, block=block, upsample=False)(model, picture)
    assert_close(S, patch_grid(fused[:, 0, 1:]), rtol=0, atol=1e-9)
    if heads == "mean":
        assert_close(S.sum((1, 2)), 1 - fused[:, 0, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_raw_attention_without_class_token_is_mean_of_rows(kind, picture):
    model = patch_transformer(kind, cls=False)
    S = RawAttention(upsample=False)(model, picture)
    assert_close(S, patch_grid(model.attentions(picture)[-1].mean((1, 2))), rtol=0, atol=1e-9)


@pytest.mark.parametrize("corners", [False, True])
def test_raw_attention_is_upsampled_bilinearly(corners, picture):
    low = RawAttention(upsample=False)(patch_transformer("fused"), picture)
    up = F.interpolate(low[:, None], (8, 12), mode="bilinear", align_corners=corners)[:, 0]
    assert_close(RawAttention(align_corners=corners)(patch_transformer("fused"), picture), up)


def test_raw_attention_of_zero_queries_is_constant(picture):
    """Attention is uniform: 1 / 7 for each of the tokens."""
    model = patch_transformer("nn")
    for block in model.blocks:
        block.mha.in_proj_weight.data[:DIM] = 0
        block.mha.in_proj_bias.data[:DIM] = 0
    S = RawAttention()(model, picture)
    assert_close(S, torch.full_like(S, 1 / 7), rtol=0, atol=1e-9)
    assert degenerate(S).all()


def test_raw_attention_keeps_weights_that_the_model_uses(function, picture):
    """nn.MultiheadAttention returns the mean over heads (B, T, T) unless asked for the heads."""
    model = patch_transformer("nn")

    def forward(x, model):
        x = model.tokens(x)
        _, weights = model.blocks[0].mha(x, x, x)
        assert weights.shape == (len(x), 7, 7)
        return model.head((weights @ x)[:, 0])

    S = RawAttention(upsample=False)(function(forward, model=model), picture)
    expected = model.attentions(picture)[0].mean(1)[:, 0, 1:]
    assert_close(S, patch_grid(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [RawAttention(), AttentionRollout()])
def test_raw_attention_and_rollout_refuse_model_without_attention(method, network, images):
    with pytest.raises(ValueError, match=r"expected a transformer .* such as GradCAM"):
        method(network, images)


@pytest.mark.parametrize("block", [2, -3])
def test_raw_attention_refuses_missing_block(block, picture):
    with pytest.raises(ValueError, match=f"2 blocks.*{block}|{block}.*2 blocks"):
        RawAttention(block=block)(patch_transformer("nn"), picture)


def test_raw_attention_refuses_unknown_heads(picture):
    with pytest.raises(ValueError, match=r"'mean', 'max', 'min'.*got 'sum'"):
        RawAttention(heads="sum")(patch_transformer("nn"), picture)
