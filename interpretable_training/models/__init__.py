"""Tiny networks for short experiments, two networks for CIFAR, two for series, and CA-Stream for any CNN."""

from .build import build_network
from .ca_stream import CAStream
from .cifar import CIFARMobileNetV2, CIFARResNet18
from .dense import TinyDetector, TinyUNet
from .recurrent import CNNLSTM, CNNBiLSTM
from .tiny import TinyCNN, TinyViT

__all__ = [
    "CNNLSTM",
    "CAStream",
    "CIFARMobileNetV2",
    "CIFARResNet18",
    "CNNBiLSTM",
    "TinyCNN",
    "TinyDetector",
    "TinyUNet",
    "TinyViT",
    "build_network",
]
