"""Build networks by name."""

import difflib
from typing import Any

from torch import nn

from .cifar import CIFARMobileNetV2, CIFARResNet18
from .dense import TinyDetector, TinyUNet
from .recurrent import CNNLSTM, CNNBiLSTM
from .tiny import TinyCNN, TinyViT

OURS: dict[str, type[nn.Module]] = {
    "tiny_cnn": TinyCNN,
    "tiny_vit": TinyViT,
    "tiny_unet": TinyUNet,
    "tiny_detector": TinyDetector,
    "cifar_resnet18": CIFARResNet18,
    "cifar_mobilenetv2": CIFARMobileNetV2,
    "cnn_lstm": CNNLSTM,
    "cnn_bilstm": CNNBiLSTM,
}


def build_network(name: str, num_classes: int, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build one of `OURS`, such as "tiny_cnn" and "tiny_unet", or any of timm.

    >>> build_network("tiny_cnn", num_classes=2, width=8)(images).shape
    torch.Size([4, 2])

    Args:
        name: Name of the network; `timm.list_models()` lists those of timm.
        num_classes: Number of outputs.
        pretrained: Whether to download the weights of timm, or take them from its cache.
        **kwargs: Further arguments of the network, such as `width` of "tiny_cnn" or `in_chans` of timm.
    """
    if name not in OURS:
        return _build_timm(name, num_classes, pretrained, kwargs)
    if pretrained:
        raise ValueError(
            f"expected pretrained=False for {name!r}, which has no trained weights, got True; "
            "pass pretrained=False or the name of a timm model."
        )
    return OURS[name](num_classes, **kwargs)


def _build_timm(name: str, num_classes: int, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """Build a model of timm; errors say what to do."""
    import timm  # imported late, because it takes seconds and the tiny networks do not need it

    if not timm.is_model(name):
        names = [*OURS, *timm.list_models()]
        raise ValueError(
            f"expected the name of a network, got {name!r}; "
            f"closest: {difflib.get_close_matches(name.lower(), names, cutoff=0.4)}. "
            f"All names: {list(OURS)} and timm.list_models()."
        )
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except TypeError as error:  # an unknown argument of this network
        raise TypeError(
            f"expected arguments that {name!r} accepts, got {kwargs}: {error}; remove or rename the one named here."
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        # The types of download errors differ between the hub and plain addresses.
        raise RuntimeError(
            f"expected to download or find in the cache the pretrained weights of {name!r}, "
            f"got {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} Pass pretrained=False to "
            "start from random weights, or run once with a network connection so that the cache holds them."
        ) from error
