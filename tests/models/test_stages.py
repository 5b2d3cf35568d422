import copy

import pytest
import timm
import torch
import torchvision
from support.families import few
from torch import nn

from interpretable_training.models import CAStream, TinyCNN
from interpretable_training.models.stages import dissect


def on_meta(build, name, **kwargs):
    with torch.device("meta"):
        return build(name, **kwargs)


RESNET = ("maxpool", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("name", "stages", "dims"),
    [
        ("resnet34", RESNET, (64, 64, 128, 256, 512)),
        ("resnext50_32x4d", RESNET, (64, 256, 512, 1024, 2048)),
        ("convnext_tiny", ("features.0", "features.2", "features.4", "features.7"), (96, 192, 384, 768)),
        ("vgg11", None, (64, 128, 256, 512, 512, 512)),
        ("densenet121", None, (64, 256, 512, 1024, 1024)),
        ("efficientnet_b0", None, (16, 24, 40, 112, 1280)),
        ("mobilenet_v2", None, (16, 24, 32, 96, 1280)),
        ("mobilenet_v3_small", None, (16, 16, 24, 48, 576)),
    ],
)
def test_stages_of_torchvision(name, stages, dims):
    """The channels are those of the papers' tables: what goes into each halving, and into the pooling."""
    results = dissect(on_meta(torchvision.models.get_model, name))
    assert results.dims == dims
    assert stages is None or results.stages == stages
    assert results.num_classes == 1000


def test_stages_of_a_regnet():
    results = dissect(torchvision.models.regnet_x_400mf())
    assert results.dims == (32, 32, 64, 160, 400)


@pytest.mark.parametrize(
    "name", ["resnet18", "seresnext26d_32x4d", "inception_v3", "densenet121", "regnety_002", "cspresnet50", "dla34"]
)
def test_stages_of_timm_equal_its_feature_info(name):
    """As many channels as in `feature_info`, of which the first is read before or after the pooling of the stem."""
    model = on_meta(timm.create_model, name)
    info = getattr(model.feature_info, "info", model.feature_info)
    assert dissect(model).dims == tuple(stage["num_chs"] for stage in info)


def test_stages_of_timm_convnext_equal_torchvision():
    """What stages 1, 2 and 3 receive and what the last returns, and as many parameters."""
    counts = []
    for build, name in ((timm.create_model, "convnext_small"), (torchvision.models.get_model, "convnext_small")):
        net = on_meta(lambda n, build=build: CAStream(build(n)), name)
        counts.append(sum(parameter.numel() for parameter in net.stream.parameters()))
    assert counts == [979104, 979104]


@pytest.mark.parametrize(
    "name", few(["mobilenetv3_small_050", "efficientnet_b0", "resnetv2_50", "convnextv2_atto"], "mobilenetv3_small_050")
)
def test_timm_heads_run_as_a_whole(name):
    """Uniform attention is average pooling, whatever lies between pooling and classifier."""
    torch.manual_seed(0)
    net = CAStream(timm.create_model(name, num_classes=5), start=len(dissect(timm.create_model(name)).stages) - 1)
    step = net.stream.blocks[0]
    with torch.no_grad():
        net.stream.query.zero_()
        nn.init.eye_(step.out.weight)
        step.out.bias.zero_()
    seen = net.forward_with_gap(torch.randn(2, 3, 96, 96))
    torch.testing.assert_close(seen.logits, seen.gap, rtol=1e-4, atol=1e-5)


def test_stages_of_a_wrapped_network_are_found():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.normalize, self.net = nn.BatchNorm2d(3), torchvision.models.resnet18(num_classes=2)

        def forward(self, images):
            return self.net(self.normalize(images))

    results = dissect(Normalized())
    assert results.stages == tuple(f"net.{name}" for name in RESNET)
    assert results.head.names == ("net.fc",)


def test_stages_and_head_accept_names():
    net = CAStream(TinyCNN(3, width=4), stages=["stem", "stage2.0", "stage3.1"], head="head")
    assert net.stages == ("stem", "stage2.0", "stage3.1")
    assert [s.shape[1] for s in net.forward_with_attention(torch.randn(1, 3, 64, 64))[1]] == [32, 16, 8]


def test_head_accepts_a_module():
    backbone = TinyCNN(3, width=4)
    assert CAStream(backbone, stages=["stage3"], head=backbone.head).head.names == ("head",)
    with pytest.raises(ValueError, match=r"expected a head, a module of TinyCNN .* got Linear"):
        CAStream(backbone, stages=["stage3"], head=nn.Linear(16, 3))


def test_dissect_does_not_change_the_backbone():
    torch.manual_seed(0)
    backbone = TinyCNN(3, width=4).train()
    backbone.stage1[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in backbone.modules()]
    dissect(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in backbone.modules()]
    assert not any(module._forward_hooks for module in backbone.modules())
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


class Strange(nn.Module):
    """Features, something in place of average pooling, and something in place of a linear head."""

    def __init__(self, pool=None, head=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1))
        self.pool, self.head = pool or (lambda F: F.mean((2, 3))), head or nn.Linear(6, 2)

    def forward(self, images):
        return self.head(self.pool(self.body(images)))


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), {}, "stages of feature maps, got Sequential without any conv"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.Linear(4, 3)),
            {"image_size": 32},
            "expected a backbone with stages, .* of more than one cell, got Sequential",
        ),
        (TinyCNN(3).stage1, {}, r"expected a backbone that returns logits \(B, N\), got \(1, 32, 224, 224\)"),
        (TinyCNN(3), {"stages": ["stage2", "layer3"]}, r"got 'layer3', which is no module that runs; .*'stage3'"),
        (
            TinyCNN(3),
            {"stages": ["stage2", "head"]},
            r"got 'head', which is no map of more than .* Available: \['stem'",
        ),
        (TinyCNN(3), {"stages": ["stage3", "stage2"]}, "in the order in which they run"),
        (TinyCNN(3), {"stages": "stage3"}, r"expected stages as a list of names, got 'stage3'"),
        (TinyCNN(3), {"stages": []}, r"expected stages as a list of names, got \[\]"),
        (TinyCNN(3), {"stages": ["stage1", "stage2"]}, "head' of TinyCNN to read the averages .* 'stage2', got other"),
        (TinyCNN(3), {"stages": ["stem", "stage1"]}, "expected a head that reads the 32 channels .* reads"),
        (TinyCNN(3), {"head": "classifier"}, "expected a head, a module of TinyCNN .* got 'classifier'"),
        (Strange(head=nn.Softmax(1)), {}, "ends in a linear classifier, .* got no learned module"),
        (
            Strange(head=nn.Sequential(nn.Linear(6, 2), nn.PReLU())),
            {},
            "ends in a linear classifier, .* got PReLU; pass head=",
        ),
        (Strange(lambda F: F.amax((2, 3))), {}, "to read the averages of the last stage 'body', got other features"),
        (Strange(lambda F: F.relu().mean((2, 3))), {}, "pass stages= that end with the map that is pooled"),
        (TinyCNN(3), {"start": 3}, r"expected start from 0 to 2, the stages of TinyCNN are .*, got 3"),
        (TinyCNN(3), {"heads": 5}, r"expected heads that divide the channels \[32, 64, 64\], got 5"),
    ],
)
def test_ca_stream_refuses_unsuitable_backbones(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        CAStream(backbone, **arguments)


def test_ca_stream_refuses_objects_that_are_no_module():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module as model, got str"):
        CAStream("resnet18")


def test_fixed_image_size_error_names_image_size():
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16 * 16, 3))
    with pytest.raises(ValueError, match=r"expected Sequential to accept images \(1, 3, 224, 224\).*pass image_size="):
        CAStream(fixed)


def test_ca_stream_refuses_maps_of_one_cell():
    net = CAStream(torchvision.models.resnet18(num_classes=2))
    with pytest.raises(ValueError, match="got 1 x 1 from stage 'layer4' for images 32 x 32; pass larger images"):
        net(torch.zeros(1, 3, 32, 32))
