"""The block is chosen, not its shortcut, and choosing waits once for the device."""

import pytest
import timm
import torchvision.models as tv
from support.attributions import toy_images
from torch import nn
from torch.overrides import TorchFunctionMode

from interpretable_training.attribution.core.auto_layer import choose_layer
from interpretable_training.attribution.core.prepared_model import prepare_model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)

    def forward(self, x):
        out = self.conv(x)
        out += self.shortcut(x)
        return out.relu_()


class OneBlock(nn.Module):
    """The sum is the tensor that the convolution made, before the shortcut ran."""

    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))


NETWORKS = {  # name: (network, image size, layer)
    "resnet10t": (lambda: timm.create_model("resnet10t"), (64, 64), "layer4"),
    "resnet14t": (lambda: timm.create_model("resnet14t"), (64, 64), "layer4"),
    "one block a stage": (lambda: tv.ResNet(tv.resnet.BasicBlock, [1] * 4), (64, 64), "layer4"),
    "own block": (OneBlock, (16, 24), "block"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stage_of_one_block_is_chosen_not_its_shortcut(name):
    make, size, layer = NETWORKS[name]
    with prepare_model(make()) as prepared:
        assert choose_layer(prepared, toy_images(2, size=size)) == layer


class Waits(TorchFunctionMode):
    """Counts what waits for a device: numbers that leave tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        leaves = {"__bool__", "__int__", "__float__", "item", "tolist", "cpu", "numpy", "equal", "allclose"}
        self.count += getattr(func, "__name__", "") in leaves
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [2, 9])
def test_choosing_waits_once_for_the_device(layers):
    body = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(layers)]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with prepare_model(net) as prepared, Waits() as waits:
        choose_layer(prepared, toy_images(2, size=(16, 16)))
    assert waits.count == 1
