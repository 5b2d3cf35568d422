"""Networks: tiny ones for experiments of a minute, two for CIFAR, any of timm by its name; CA-Stream for any CNN."""

from .build import build_network
from .ca_stream import CAStream
from .cifar import CIFARMobileNetV2, CIFARResNet18
from .tiny import TinyCNN, TinyViT

__all__ = ["CAStream", "CIFARMobileNetV2", "CIFARResNet18", "TinyCNN", "TinyViT", "build_network"]
