"""CA-Stream on transformers and on maps with channels last."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import CAM, GradCAM, RawAttention
from interpretable_training.models import CAStream, TinyCNN, TinyViT
from interpretable_training.models.stages import dissect

SIZE = {"img_size": 32, "patch_size": 8, "depth": 5, "embed_dim": 24, "num_heads": 2, "num_classes": 3}


def vit(**kwargs):
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(**{**SIZE, **kwargs}).double().eval()
    for name in ("cls_token", "reg_token", "pos_embed"):
        if getattr(net, name, None) is not None:
            nn.init.normal_(getattr(net, name))
    return net


def swin():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (1, 1, 1), "num_heads": (1, 2, 2)}
    return timm.models.swin_transformer.SwinTransformer(**options, embed_dim=8, num_classes=3).double().eval()


@pytest.fixture(name="photographs")
def photographs_fixture():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cells_of_vit(net, images):
    """Patches behind blocks 0, 1, 2 of 5 and behind the last norm, as lists of vectors."""
    x = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    outputs = []
    for block in net.blocks:
        x = block(x)
        outputs.append(x)
    stages = [outputs[0], outputs[1], outputs[2], net.norm(x)]
    return [[list(image) for image in stage[:, net.num_prefix_tokens :]] for stage in stages], net.fc_norm


def cells_of_swin(net, images):
    x, stages = net.patch_embed(images), []
    for layer in net.layers:
        x = layer(x)
        stages.append(x)
    stages[-1] = net.norm(x)
    return [[list(image.flatten(0, 1)) for image in stage] for stage in stages], nn.Identity()


def slow_logits(net, images, cells_of):
    """Equations 3.1 to 3.7 in plain loops over images, stages and cells."""
    stages, norm = cells_of(net.backbone, images)
    head = net.backbone.head if isinstance(net.backbone.head, nn.Linear) else net.backbone.head.fc
    rows = []
    for i in range(len(images)):
        q = net.stream.query[0]
        for stage, step in zip(stages, net.stream.blocks):
            s = torch.stack([sum(cell * q) / len(q) ** 0.5 for cell in stage[i]])
            a = s.exp() / s.exp().sum()
            CA = sum(weight * cell for weight, cell in zip(a, stage[i]))
            q = torch.stack([sum(row * CA) + b for row, b in zip(step.out.weight, step.out.bias)])
        rows.append(head(norm(q)))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("build", "cells_of"),
    [
        (lambda: vit(depth=5), cells_of_vit),
        (lambda: vit(class_token=False, global_pool="avg"), cells_of_vit),
        (lambda: vit(reg_tokens=3, global_pool="map"), cells_of_vit),
        (swin, cells_of_swin),
    ],
    ids=["class token", "average", "registers and attention", "swin"],
)
def test_token_logits_equal_plain_loops(build, cells_of, photographs):
    net = CAStream(build())
    with torch.no_grad():
        assert_close(net(photographs), slow_logits(net, photographs, cells_of), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "stages", "pooling"),
    [
        (lambda: vit(depth=12), ("blocks.2", "blocks.5", "blocks.8", "norm"), "own"),
        (lambda: vit(depth=2), ("blocks.0", "norm"), "own"),
        (lambda: vit(depth=4, class_token=False, global_pool="avg"), ("blocks.0", "blocks.1", "blocks.2"), "gap"),
        (lambda: vit(depth=4, global_pool="map"), ("blocks.0", "blocks.1", "blocks.2", "norm"), "own"),
        (swin, ("layers.0", "layers.1", "norm"), "gap"),
        (lambda: TinyViT(3, image_size=32, dim=8), ("blocks.0", "norm"), "own"),
    ],
)
def test_token_stages_and_pooling(build, stages, pooling):
    results = dissect(build())
    assert results.stages[: len(stages)] == stages
    assert results.pooling == pooling


@pytest.mark.parametrize("prefix", [0, 1, 2, 5, 16])
def test_streams_never_read_prefix_tokens(prefix, photographs):
    """Noise on the class token and registers behind the last block changes nothing."""
    net = CAStream(vit(depth=2, class_token=prefix > 0, reg_tokens=max(prefix - 1, 0), global_pool="map"))
    expected, attention = net.forward_with_attention(photographs)
    assert [s.shape for s in attention] == [(2, 4, 4), (2, 4, 4)]

    def disturb(module, args, output):
        return torch.cat([output[:, :prefix] + 9, output[:, prefix:]], 1)

    net.backbone.norm.register_forward_hook(disturb)
    assert_close(net(photographs), expected)


@pytest.mark.parametrize("build", [swin, lambda: vit(class_token=False, global_pool="avg")])
def test_uniform_token_attention_equals_average_pooling(build, averaging, photographs):
    net = averaging(CAStream(build(), start=2))
    net.start = 0
    with torch.no_grad():
        for step in net.stream.blocks:  # q = 0 behind every step but the last
            step.out.weight.zero_()
            step.out.bias.zero_()
        nn.init.eye_(net.stream.blocks[-1].out.weight)
        seen = net.forward_with_gap(photographs)
    assert_close(seen.logits, seen.gap)


def test_own_pooling_is_that_of_the_backbone(photographs):
    backbone = vit(global_pool="map")
    expected = copy.deepcopy(backbone)(photographs)
    assert_close(CAStream(backbone).forward_with_gap(photographs).gap, expected)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # 4 steps of 384 x 384 weights and 384 biases, and the query
        ("vit_small_patch16_224", 4 * (384**2 + 384) + 384),
        ("vit_base_patch16_224", 4 * (768**2 + 768) + 768),
        # 96 -> 192 -> 384 -> 768 -> 768
        (
            "swin_tiny_patch4_window7_224",
            (96 + 1) * 192 + (192 + 1) * 384 + (384 + 1) * 768 + (768 + 1) * 768 + 96,
        ),
    ],
)
def test_token_stream_parameters_equal_the_formula(name, total):
    with torch.device("meta"):
        net = CAStream(timm.create_model(name))
    assert sum(parameter.numel() for parameter in net.stream.parameters()) == total


@pytest.mark.parametrize("together", [False, True])
def test_several_queries_equal_one_stream_each(together, photographs):
    """Averaged: the mean of the streams with one of the queries; side by side: the sum of their parts of W."""
    torch.manual_seed(0)
    net = CAStream(vit(depth=2), queries=3, side_by_side=together, start=1)
    parts = []
    for m in range(3):
        one = CAStream(net.backbone, start=1)
        step, whole = one.stream.blocks[0].out, net.stream.blocks[0].out
        one.stream.query.data = net.stream.query.data[m : m + 1]
        step.weight.data = whole.weight.data[:, 24 * m : 24 * (m + 1)] if together else whole.weight.data
        step.bias.data = whole.bias.data / 3 if together else whole.bias.data
        parts.append(one.stream(one.features(photographs)[1])[0])
    q = sum(parts) if together else sum(parts) / 3
    logits, attention = net.forward_with_attention(photographs)
    assert_close(logits, net.head(net.backbone, q))
    assert attention[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("arguments", [{"queries": 3}, {"queries": 2, "side_by_side": True, "heads": 2}])
def test_attended_cam_of_several_queries_sums_to_the_logit(arguments, photographs):
    net = CAStream(vit(depth=2), num_classes=4, **arguments)
    S = CAM("backbone.norm", attended=True, upsample=False)(net, photographs, [2, 0])
    b = net.class_weights()[1].detach()
    assert_close(S.sum((1, 2)) + b[[2, 0]], net(photographs)[[0, 1], [2, 0]].detach())


def test_new_linear_head_is_trained_and_saved(photographs):
    backbone = vit(num_classes=0)
    net = CAStream(backbone, num_classes=7)
    assert net.forward_with_gap(photographs).gap is None
    before = copy.deepcopy(backbone.state_dict())
    net.train()(photographs).sum().backward()
    assert net.probe.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert_close(backbone.state_dict(), before, rtol=0, atol=0)
    state = net.state_dict()
    assert {name.split(".")[0] for name in state} == {"stream", "probe", "_extra_state"}
    other = CAStream(vit(num_classes=0), num_classes=7)
    other.load_state_dict(state)
    assert_close(other(photographs), net.eval()(photographs))
    wrong = vit(num_classes=0)
    wrong.norm.weight.data[0] += 1
    with pytest.raises(RuntimeError, match="expected the backbone with which this stream was trained"):
        CAStream(wrong, num_classes=7).load_state_dict(state)


def test_train_head_of_a_transformer_trains_its_head_only(photographs):
    net = CAStream(vit(), train_head=True).train()
    net(photographs).sum().backward()
    with_gradient = {name for name, p in net.backbone.named_parameters() if p.grad is not None}
    assert with_gradient == {"head.weight", "head.bias"}


@pytest.mark.parametrize("method", [RawAttention(), GradCAM(), CAM()])
def test_methods_explain_token_streams(method, photographs):
    S = method(CAStream(vit()), photographs, 1)
    assert S.shape == (2, 32, 32)
    assert S.flatten(1).std(1).gt(0).all()


def test_other_image_sizes_have_other_grids(photographs):
    net = CAStream(vit(dynamic_img_size=True, reg_tokens=1))
    _, attention = net.forward_with_attention(photographs.new_zeros(1, 3, 32, 64))
    assert attention[0].shape == (1, 4, 8)
    with pytest.raises(
        ValueError, match="expected more than one patch in a grid, behind 2 prefix tokens, got 3 tokens"
    ):
        net(photographs.new_zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (lambda: vit(img_size=8), {}, "expected a backbone with stages, .* images of more than one patch"),
        (vit, {"stages": ["blocks.1", "blocks.9"]}, r"got 'blocks.9', which is no module that runs; .*'blocks"),
        (vit, {"head": "blocks.0.attn.qkv"}, "expected a head, a module of VisionTransformer"),
        (lambda: vit(num_classes=0), {}, "ends in a linear classifier, .* or num_classes= for a new linear head"),
        (vit, {"queries": 0}, "expected at least one query, got queries=0"),
        (vit, {"num_classes": 0}, "expected num_classes of at least 1 .* got 0"),
        (vit, {"num_classes": 3, "class_specific": True}, "expected num_classes=3 without head= and class_specific="),
        (vit, {"heads": 5}, r"expected heads that divide the channels \[24, 24, 24, 24\], got 5"),
        (nn.Identity, {"num_classes": 3}, "got Identity without any convolution"),
    ],
)
def test_ca_stream_refuses_bad_transformers(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        CAStream(build(), **arguments)


def test_head_of_another_size_is_refused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = TinyViT(3, image_size=32, dim=8), nn.Linear(2 * 8, 5)
            self.body.head = nn.Identity()

        def forward(self, images):
            x = self.body(images)
            return self.head(torch.cat([x, x], 1))

    with pytest.raises(ValueError, match=r"'head' reads \(16,\); .* or num_classes= for a new linear head"):
        CAStream(Wide())
    assert CAStream(Wide(), num_classes=2)(torch.randn(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Siglip"])
def test_models_of_transformers_library(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{kind}VisionConfig" if kind == "Siglip" else f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}VisionModel" if kind == "Siglip" else f"{kind}Model")(config)
    net, images = CAStream(model, num_classes=3), torch.randn(2, 3, 32, 32)
    logits, attention = net.forward_with_attention(images)
    assert logits.shape == (2, 3)
    assert [s.shape for s in attention] == [(2, 4, 4)] * 4
    F = model.eval()(images).last_hidden_state[:, 0 if kind == "Siglip" else 1 :].mT
    assert_close(net.features(images)[1][-1].flatten(2), F)
    if kind == "ViT":
        whole = CAStream(transformers.ViTForImageClassification(config))
        assert (whole.pooling, whole(images).shape) == ("own", (2, 2))


def test_parameters_of_cnn_streams_are_unchanged():
    assert CAStream(TinyCNN(3, width=4)).pooling == "gap"
