"""Any attribution class of captum as a method here: https://captum.ai

The algorithm runs on the prepared model; its volume (B, C, ...) becomes a map like a gradient's, a layer's volume is
summed over its channels and resized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .base import Attribution
from .capture import get_layer
from .choose import choose_layer
from .gradient import Reduce, reduce_channels
from .maps import resize
from .observe import Observed
from .targets import Resolved


@dataclass(frozen=True)
class CaptumAttribution(Attribution):
    """An algorithm of captum by the name of its class.

    Args:
        algorithm: a class of `captum.attr`, such as "IntegratedGradients" or "LayerGradCam".
        layer: for algorithms of layers: "auto" or a dotted name.
        reduce: of the channels, see `Gradient`; "signed_sum" is usual for layers.
        init_args: keywords of the class.
        call_args: keywords of its `attribute`.
    """

    algorithm: str = "IntegratedGradients"
    layer: str | None = None
    reduce: Reduce = "abs_of_sum"
    init_args: Mapping[str, Any] = field(default_factory=dict)
    call_args: Mapping[str, Any] = field(default_factory=dict)

    def attribute(self, observed: Observed, images: Tensor, target: Resolved) -> Tensor:
        if callable(target):
            raise TypeError("expected class indices as target: captum takes no callable.")
        model = _Logits(observed)
        args: list[Any] = [model]
        if self.layer is not None:
            name = choose_layer(observed, images) if self.layer == "auto" else self.layer
            args.append(get_layer(observed.module, name))
        found = self._class()(*args, **self.init_args).attribute(images, target=target, **self.call_args)
        volume = (found[0] if isinstance(found, tuple) else found).detach()
        return resize(reduce_channels(volume, self.reduce), images.shape[2:])

    def _class(self) -> type:
        try:
            import captum.attr
        except ModuleNotFoundError as error:
            raise ImportError(
                'CaptumAttribution needs captum: pip install "interpretable-training[captum]".'
            ) from error
        if not hasattr(captum.attr, self.algorithm):
            known = sorted(name for name in captum.attr.__all__ if name[0].isupper())
            raise ValueError(f"expected a class of captum.attr, got {self.algorithm!r}; there are {known}.")
        return getattr(captum.attr, self.algorithm)


class _Logits(nn.Module):
    # captum wants a module; registering the model as its child makes its hooks reach the layers.
    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self.module, self.observed = observed.module, observed

    def forward(self, images: Tensor) -> Tensor:
        return self.observed(images)
