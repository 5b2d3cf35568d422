"""Networks: two tiny ones for experiments that take a minute, and any timm model by its name."""

from .build import build_network
from .tiny import TinyCNN, TinyViT

__all__ = ["TinyCNN", "TinyViT", "build_network"]
