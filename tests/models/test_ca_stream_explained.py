"""Every method explains a CA-Stream as any other model, and raw attention and CAM in a way of their own."""

import pytest
import torch
import torchvision
from torch.testing import assert_close

from interpretable_training.attribution import (
    CAM,
    AblationCAM,
    DeconvNet,
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    OptiCAM,
    RawAttention,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
    explain,
)
from interpretable_training.attribution.core.auto_layer import choose_layer
from interpretable_training.attribution.core.capture import capture
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.models import CAStream, TinyCNN

METHODS = [
    *(CAM(), GradCAM(), GradCAMPlusPlus(), HiResCAM(), LayerCAM(), XGradCAM(), EigenCAM(), AblationCAM(), ScoreCAM()),
    *(OptiCAM(steps=2), Gradient(), InputXGradient(), GuidedBackprop(), DeconvNet(), GuidedGradCAM(), RawAttention()),
    *(IntegratedGradients(steps=2), SmoothGrad(n=2)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_explains_ca_stream(tiny, images, method):
    net = tiny()
    before = net.checksums()
    S = method(net, images, 1)
    assert S.shape == (2, 32, 32)
    assert S.isfinite().all()
    assert S.flatten(1).std(1).gt(0).all()
    assert net.checksums() == before
    assert not any(parameter.requires_grad for parameter in net.backbone.parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.stream.parameters())


def test_auto_layer_is_the_last_stage(tiny, images):
    with prepare_model(tiny()) as prepared:
        assert choose_layer(prepared, images) == "backbone.stage3"


def test_layers_with_the_same_maps_have_the_same_gradient(tiny, images):
    """A sequence returns what its last part does: whichever of them is explained, the stream comes behind it."""
    net = tiny(stages=["stage1.2", "stage2.1.2", "stage3.1"])
    expected = GradCAM("backbone.stage3.1.2")(net, images, 1)
    assert expected.any()
    for layer in ("backbone.stage3.1", "backbone.stage3", "auto"):
        assert_close(GradCAM(layer)(net, images, 1), expected)


def test_gradcam_of_uniform_attention_equals_average_pooling(tiny, averaging, images):
    """The derivative through the query is proportional to q, which is zero: only that through the values is left."""
    net = averaging(tiny(start=2))
    for target in (0, [1, 2]):
        S = GradCAM("backbone.stage3")(net, images, target)
        assert_close(S, GradCAM("stage3")(net.backbone, images, target), rtol=0, atol=1e-12)
        assert S.any()


@pytest.mark.parametrize("layer", ["stage3", "stage2", "stage1"])
def test_layer_gradients_equal_finite_differences(tiny, images, layer):
    """Central differences of the logit, in a direction of the layer's maps, which later stages read too."""
    net, target = tiny(), 1
    torch.manual_seed(3)
    module, shift = net.backbone.get_submodule(layer), None

    def logit(eps):
        handle = module.register_forward_hook(lambda module, args, output: output + eps * shift)
        try:
            return net(images)[:, target].sum()
        finally:
            handle.remove()

    with prepare_model(net) as prepared:
        dA = capture(prepared, images, [f"backbone.{layer}"], target).dA[f"backbone.{layer}"]
    shift = torch.randn_like(dA)
    with torch.no_grad():
        slope = (logit(1e-5) - logit(-1e-5)) / 2e-5
    assert slope.abs() > 1e-4
    assert_close((dA * shift).sum(), slope, rtol=1e-4, atol=1e-8)


def test_image_gradient_equals_finite_differences(tiny, images):
    net = tiny()
    x, eps = images.clone(), 1e-6
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        slope = (net(x + eps * direction)[:, 2] - net(x - eps * direction)[:, 2]).sum() / (2 * eps)
    g = Gradient(reduce="none")(net, images, 2)
    assert_close((g * direction).sum(), slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("arguments", [{}, {"heads": 2}, {"projected": True}, {"projected": True, "heads": 4}])
def test_attended_cam_sums_to_the_logit(tiny, images, arguments):
    """y[c] = b[c] + sum over i of S[c, i] with S = sum over heads of a[h] V[h, c] A."""
    net = tiny(**arguments)
    S = CAM(attended=True, upsample=False)(net, images, [2, 0])
    b = net.class_weights()[1].detach()
    assert_close(S.sum((1, 2)) + b[[2, 0]], net(images)[[0, 1], [2, 0]].detach())


def test_cam_uses_class_weights_times_last_projection(tiny, images):
    net = tiny()
    F = net.backbone.stage3(net.backbone.stage2(net.backbone.stage1(net.backbone.stem(images)))).detach()
    V = (net.backbone.head.weight @ net.stream.blocks[-1].out.weight).detach()
    S = CAM("backbone.stage3", upsample=False)(net, images, 1)
    assert_close(S, torch.einsum("k,bkij->bij", V[1], F))


def test_cam_refuses_a_head_with_a_norm():
    net = CAStream(torchvision.models.convnext_tiny(num_classes=3))
    with pytest.raises(ValueError, match=r"pooling and one linear layer behind .*; use GradCAM"):
        CAM()(net, torch.randn(1, 3, 64, 64), 0)


def test_cam_under_attention_refuses_average_pooling(images):
    with pytest.raises(ValueError, match="expected attention pooling and one linear layer"):
        CAM(attended=True)(TinyCNN(3, width=4).double(), images, 0)


def test_raw_attention_equals_forward_with_attention(tiny, images):
    net = tiny()
    _, attention = net.forward_with_attention(images)
    S = RawAttention(upsample=False)(net, images)
    assert_close(S, attention.maps[-1].detach())
    assert_close(RawAttention(upsample=False, logits=True, block=0)(net, images), attention[0].detach())
    maps = explain({"raw": RawAttention(), "gradcam": GradCAM()}, net, images)
    assert maps["raw"].shape == maps["gradcam"].shape == (2, 32, 32)


def test_raw_attention_of_zero_query_is_uniform(tiny, averaging, images):
    S = RawAttention(upsample=False)(averaging(tiny(start=2)), images)
    assert_close(S, torch.full_like(S, 1 / 16))


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_raw_attention_fuses_several_heads(tiny, images, heads):
    net = tiny(heads=4)
    a = net.forward_with_attention(images)[1].maps[1].detach()
    expected = {"mean": a.sum(1) / 4, "max": a.max(1).values, "min": a.min(1).values}[heads]
    assert_close(RawAttention(heads=heads, block=1, upsample=False)(net, images), expected)


def test_raw_attention_of_class_queries_follows_the_target(tiny, images):
    net = tiny(class_specific=True)
    target = torch.tensor([2, 0])
    expected = net.forward_with_attention(images, target)[1].maps[-1].detach()
    assert_close(RawAttention(upsample=False)(net, images, target), expected)
    assert not torch.allclose(RawAttention(upsample=False)(net, images, (target + 1) % 3), expected)


def test_raw_attention_names_the_available_blocks(tiny, images):
    with pytest.raises(ValueError, match=r"expected a block from -3 to 2, .* got 3"):
        RawAttention(block=3)(tiny(), images)


def test_raw_scores_need_a_stream(images):
    with pytest.raises(ValueError, match="expected a model with forward_with_attention for logits=True, got TinyCNN"):
        RawAttention(logits=True)(TinyCNN(3, width=4).double(), images)
