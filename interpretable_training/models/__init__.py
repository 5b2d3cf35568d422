"""Tiny networks for short experiments, networks for CIFAR and series, CA-Stream for CNNs and transformers."""

from .build import build_network
from .ca_stream import CAStream
from .cifar import CIFARMobileNetV2, CIFARResNet18
from .dense import TinyDetector, TinyUNet
from .probe import Probe
from .recurrent import CNNLSTM, CNNBiLSTM
from .tiny import TinyCNN, TinyViT
from .with_attention import WithAttention

__all__ = [
    "CNNLSTM",
    "CAStream",
    "CIFARMobileNetV2",
    "CIFARResNet18",
    "CNNBiLSTM",
    "Probe",
    "TinyCNN",
    "TinyDetector",
    "TinyUNet",
    "TinyViT",
    "WithAttention",
    "build_network",
]
