"""Networks of many families, for what must hold for all of them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from interpretable_training.models import TinyCNN

TORCHVISION = {"resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "densenet121": 64}
TORCHVISION |= {"regnet_y_400mf": 64, "vgg11_bn": 32, "googlenet": 64, "convnext_tiny": 64, "shufflenet_v2_x0_5": 64}
TIMM = {"vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "efficientnet_b0": 64, "inception_v3": 96}
FAST = ("tiny", "resnet18", "timm/efficientnet_b0")
FAMILIES = ["tiny", *TORCHVISION, *(f"timm/{name}" for name in TIMM)]
FAST_FIRST = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def with_statistics(net):
    """The network in float64 with batch norms that change what they get."""
    generator = torch.Generator().manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 1.5)):
                tensor.uniform_(low, high, generator=generator)
            for tensor in norm.parameters():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def build(name):
    torch.manual_seed(0)
    if name == "tiny":
        return TinyCNN(num_classes=5), 32
    if name.startswith("timm/"):
        name = name.removeprefix("timm/")
        return timm.create_model(name, pretrained=False, num_classes=5), TIMM[name]
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=5, **options), TORCHVISION[name]
