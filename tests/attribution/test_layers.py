"""Test which layer is chosen, how its output becomes a grid, and the errors for other layers."""

import importlib.util
from collections import namedtuple
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as tv
from support.attributions import ToyCNN, ToyViT, toy, toy_images
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import AblationCAM, GradCAM, HiResCAM, LayerCAM
from interpretable_training.attribution.core.auto_layer import choose_layer
from interpretable_training.attribution.core.capture import capture
from interpretable_training.attribution.core.prepared_model import prepare_model

slow = pytest.mark.slow
SMALL_VIT = {"img_size": 64, "depth": 3, "num_classes": 5}


def vgg11():
    """Without the hundred million parameters of its classifier."""
    with torch.device("meta"):
        net = tv.vgg11()
    net.features.to_empty(device="cpu")
    net.classifier = nn.Linear(512 * 49, 5)
    for p in net.features.parameters():
        nn.init.normal_(p, std=0.05)
    return net


def tv_vit():
    return tv.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)


def timm_vit(name="vit_tiny_patch16_224", **options):
    return lambda: timm.create_model(name, **{**SMALL_VIT, **options})


def timm_swin():
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 1, 1))


NETWORKS = {  # name: (network, image size, layer, grid, features)
    "resnet18": (tv.resnet18, (64, 64), "layer4", (2, 2), 512),
    "resnet18 not square": (tv.resnet18, (64, 160), "layer4", (2, 5), 512),
    "vgg11": (vgg11, (64, 64), "features.19", (4, 4), 512),  # the ReLU before the last pooling
    "densenet121": (tv.densenet121, (64, 64), "features", (2, 2), 1024),
    "mobilenet_v2": (tv.mobilenet_v2, (64, 64), "features", (2, 2), 1280),
    "mobilenet_v3_small": (tv.mobilenet_v3_small, (64, 64), "features", (2, 2), 576),
    "convnext_tiny": (tv.convnext_tiny, (64, 64), "features", (2, 2), 768),
    "swin_t": (tv.swin_t, (64, 64), "permute", (2, 2), 768),
    "torchvision vit": (tv_vit, (64, 64), "encoder.layers.encoder_layer_2.ln_1", (4, 4), 32),
    "timm vit": (timm_vit(), (64, 64), "blocks.2.norm1", (4, 4), 192),
    "timm vit not square": (timm_vit(img_size=(64, 96)), (64, 96), "blocks.2.norm1", (4, 6), 192),
    "timm vit, mean of patches": (timm_vit(global_pool="avg"), (64, 64), "blocks", (4, 4), 192),
    "timm vit, register tokens": (timm_vit(reg_tokens=4), (64, 64), "blocks.2.norm1", (4, 4), 192),
    # 16 patches and 16 channels per head: keys (B, heads, 16, 16) look like a grid
    "timm vit, pooled by attention": (timm_vit(global_pool="map", embed_dim=48), (64, 64), "norm", (4, 4), 48),
    "distilled deit": (timm_vit("deit_tiny_distilled_patch16_224"), (64, 64), "blocks.2.norm1", (4, 4), 192),
    "timm swin": (timm_swin, (64, 64), "norm", (2, 2), 768),
    "convnext atto": (lambda: timm.create_model("convnext_atto"), (64, 64), "stages", (2, 2), 320),
    "hybrid": (timm_vit("vit_tiny_r_s16_p8_224"), (64, 64), "blocks.2.norm1", (2, 2), 192),
    "our toy": (toy, (16, 24), "boom", (4, 6), 8),
    "our toy vit": (ToyViT, (16, 24), "blocks.1.norm1", (4, 6), 8),
}
LARGE = {
    "vit_b_16": (tv.vit_b_16, (224, 224), "encoder.layers.encoder_layer_11.ln_1", (14, 14), 768),
    "swin_t 224": (tv.swin_t, (224, 224), "permute", (7, 7), 768),
    "timm vit 224": (timm_vit(img_size=224, depth=12), (224, 224), "blocks.11.norm1", (14, 14), 192),
    "maxvit": (lambda: timm.create_model("maxvit_nano_rw_256", img_size=64), (64, 64), "norm", (2, 2), 512),
    "coatnet": (lambda: timm.create_model("coatnet_nano_rw_224", img_size=64), (64, 64), "norm", (2, 2), 512),
}
networks = pytest.mark.parametrize("case", [*NETWORKS, *[pytest.param(name, marks=slow) for name in LARGE]])


def learned(make):
    """The network in eval mode; a head that starts at zero gets weights, as after training."""
    torch.manual_seed(0)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return net


@networks
def test_auto_layer_is_last_grid_with_gradient(case):
    make, size, layer, grid, features = {**NETWORKS, **LARGE}[case]
    net, images = learned(make), toy_images(2, size=size)
    with prepare_model(net) as prepared:
        assert choose_layer(prepared, images) == layer
        captured = capture(prepared, images, [layer])
    assert captured.grids[layer].shape == grid
    assert captured.A[layer].shape == captured.dA[layer].shape == (2, features, *grid)
    assert captured.dA[layer].any()
    maps = LayerCAM()(net, images)
    assert maps.shape == (2, *size)
    assert (maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).any()


@pytest.mark.parametrize(
    ("make", "layer", "prefix"),
    [
        (tv_vit, "encoder.layers.encoder_layer_2.ln_1", 1),
        (timm_vit(), "blocks.1", 1),
        (timm_vit(reg_tokens=4), "blocks.2.norm1", 5),
        (timm_vit(global_pool="avg", class_token=False), "blocks.2", 0),
        (timm_vit("deit_tiny_distilled_patch16_224"), "blocks.1", 2),
        (ToyViT, "blocks.0", 1),
    ],
)
def test_capture_drops_prefix_tokens_and_keeps_rows(make, layer, prefix):
    size = (16, 24) if make is ToyViT else (64, 64)
    net, images, outputs = learned(make), toy_images(2, size=size), []
    handle = net.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[-1].detach().clone()))
    net(images)
    handle.remove()
    with prepare_model(net) as prepared:
        captured = capture(prepared, images, [layer])
    assert captured.grids[layer].prefix == prefix
    width = captured.grids[layer].shape[1]
    for i, j in ((0, 0), (1, 2), (3, 3)):
        assert_close(captured.A[layer][:, :, i, j], outputs[0][:, prefix + i * width + j])


def test_capture_reads_swin_channels_last():
    net, images = learned(timm_swin), toy_images(2, size=(64, 64))
    with prepare_model(net) as prepared:
        captured = capture(prepared, images, ["layers.0", "norm"])
    assert captured.grids["norm"].layout == "last"
    assert captured.A["layers.0"].shape == (2, 96, 16, 16)


def test_capture_keeps_position_of_patches():
    """Of a network that sees nothing but one patch, that patch is the brightest place."""
    for make, size, layer in ((ToyViT, (16, 24), "patch"), (tv_vit, (64, 64), "conv_proj")):
        net = learned(make)
        nn.init.zeros_(net.get_submodule(layer).weight if layer == "conv_proj" else net.patch[0].weight)
        with prepare_model(net) as prepared:
            assert capture(prepared, toy_images(2, size=size), [layer]).grids[layer].layout == "first"
    net = ToyCNN().eval()
    nn.init.ones_(net.stem[0].weight)
    images = torch.zeros(1, 3, 16, 24)
    images[:, :, 12:, 2:6] = 5
    S = LayerCAM(layer="stem.0", relu=False)(net, images, 0).abs()[0]
    rows, columns = S.sum(1), S.sum(0)
    assert int(rows.argmax()) >= 10
    assert int(columns.argmax()) <= 7


def test_auto_layer_of_zero_head_is_not_kept():
    torch.manual_seed(0)
    net, images = tv_vit().eval(), toy_images(2, size=(64, 64))
    assert not GradCAM()(net, images).any()
    nn.init.normal_(net.heads.head.weight)
    with prepare_model(net) as prepared:
        assert choose_layer(prepared, images) == "encoder.layers.encoder_layer_2.ln_1"
    assert HiResCAM()(net, images).any()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = toy(), toy()

    def forward(self, x):
        return {"left": self.left(x), "right": self.right(x)}


def test_auto_layer_follows_the_output():
    net, images = TwoHeads().eval(), toy_images()
    for key in ("left", "right", "left"):
        assert_close(GradCAM()(net, images, 1, output=key), GradCAM()(toy(), images, 1))
    for key in ("left", "right"):
        assert_close(GradCAM()(net, images, lambda out, key=key: out[key][:, 1]), GradCAM()(toy(), images, 1))


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("blok", ValueError, "'blok'; closest: .*'block"),
        ("head", ValueError, r"'head' with output \(3, 4\); better: .*'block"),
        ("unused", RuntimeError, "'unused' to run"),
        (["block", "blok"], ValueError, "'blok'; closest"),
        ([], ValueError, "layer"),
        (nn.ReLU(), (TypeError, ValueError), "layer.*ReLU"),
        (3, (TypeError, ValueError), "layer.*3"),
    ],
)
def test_wrong_layer_error_lists_better_names(layer, error, words):
    net = toy()
    net.unused = nn.Conv2d(3, 3, 1)
    del net.boom
    net.boom = nn.Identity()
    with pytest.raises(error, match=words):
        GradCAM(layer=layer)(net, toy_images())


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (tv_vit, "encoder.layers.encoder_layer_2"),
        (tv_vit, "encoder"),
        (timm_vit(), "blocks.2"),
        (timm_vit(), "blocks.2.norm2"),
        (timm_vit(reg_tokens=4), "norm"),
    ],
)
def test_layer_behind_last_attention_error_lists_better_names(make, layer):
    better = "encoder.layers.encoder_layer_2.ln_1" if make is tv_vit else "blocks.2.norm1"
    with pytest.raises(ValueError, match=rf"{layer}.*prefix tokens.*better: '{better}' \(4 x 4\)"):
        GradCAM(layer=layer)(learned(make), toy_images(2, size=(64, 64)))


@pytest.mark.parametrize("option", [{"normalize": "bevor"}, {"fusion": "sum"}, {"score": "logits"}, {"rule": "leaky"}])
def test_grad_cam_of_two_layers_refuses_unknown_options(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}|got '{next(iter(option.values()))}'"):
        GradCAM(layer=["stem", "block"], **option)(toy(), toy_images())


def test_auto_layer_error_names_network_without_grid():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 4))
    with pytest.raises(ValueError, match="got none in Sequential"):
        GradCAM()(net, toy_images())
    with pytest.raises(ValueError, match="no layer with such a grid"):
        GradCAM(layer="1")(net, toy_images())


class Reused(nn.Module):
    """One convolution runs twice; one activation has two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 4)
        self.first = self.second = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.second(self.conv(self.first(self.conv(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("layer", ["first", "second"])
def test_capture_reads_reused_module_at_its_last_run(layer):
    net = Reused().eval()
    A = net.conv(net.conv(toy_images()).relu()).relu()
    expected = torch.einsum("k,bkij->bij", net.head.weight[1] / A[0, 0].numel(), A).relu()
    assert_close(GradCAM(layer=layer)(net, toy_images(), 1), expected.detach())


Pair = namedtuple("Pair", ["features", "other"])


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x, 1], lambda x: Pair(x, 2)])
def test_capture_reads_first_tensor_of_tuples(wrap):
    class Many(nn.Module):
        def forward(self, x):
            return wrap(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.many = toy(), Many()

        def forward(self, x):
            A = self.many(self.net.block(self.net.stem(x)))
            A = A.features if isinstance(A, Pair) else A[0]
            return self.net.head(A.mean((2, 3)))

    for method in (GradCAM, AblationCAM):
        expected = method(layer="block")(toy(), toy_images(), 1)
        assert_close(method(layer="many")(Net().eval(), toy_images(), 1), expected)


SCRIPT = Path(__file__).parents[2] / "docs" / "make_layer_table.py"


@pytest.mark.slow
def test_layers_page_lists_what_auto_chooses():
    spec = importlib.util.spec_from_file_location("make_layer_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table().splitlines() == script.FILE.read_text().splitlines()
