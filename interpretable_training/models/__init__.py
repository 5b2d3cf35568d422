"""Networks: tiny ones for experiments of a minute, two for CIFAR, two for series, any of timm; CA-Stream for CNNs."""

from .build import build_network
from .ca_stream import CAStream
from .cifar import CIFARMobileNetV2, CIFARResNet18
from .recurrent import CNNLSTM, CNNBiLSTM
from .tiny import TinyCNN, TinyViT

__all__ = [
    "CNNLSTM",
    "CAStream",
    "CIFARMobileNetV2",
    "CIFARResNet18",
    "CNNBiLSTM",
    "TinyCNN",
    "TinyViT",
    "build_network",
]
