"""Attribution classes of captum as methods: https://captum.ai

The algorithm runs on the prepared model. Its volume (B, C, ...) becomes a map as in `Gradient`; the map of a layer is
resized to the image.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .core.auto_layer import choose_layer
from .core.base import Attribution
from .core.capture import get_layer
from .core.map_operations import resize
from .core.prepared_model import PreparedModel
from .core.targets import Resolved, in_range
from .gradient import Reduce, reduce_channels


@dataclass(frozen=True)
class CaptumAttribution(Attribution):
    """Run an attribution class of captum, given by its name.

    >>> CaptumAttribution("IntegratedGradients", call_args={"n_steps": 4})(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        algorithm: name of a class in `captum.attr`, for example "IntegratedGradients" or "LayerGradCam".
        layer: "auto" or a dotted name, for algorithms that need a layer.
        reduce: of the channels, see `Gradient`; "signed_sum" is usual for layers.
        init_args: keyword arguments of the class.
        call_args: keyword arguments of its `attribute`.
    """

    algorithm: str = "IntegratedGradients"
    layer: str | None = None
    reduce: Reduce = "abs_of_sum"
    init_args: Mapping[str, Any] = field(default_factory=dict)
    call_args: Mapping[str, Any] = field(default_factory=dict)

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        if callable(target):
            raise TypeError("expected class indices as target of captum's algorithms, got a callable.")
        in_range(target, prepared(images[:1]).shape[1])
        model = _Logits(prepared)
        args: list[Any] = [model]
        if self.layer is not None:
            name = choose_layer(prepared, images) if self.layer == "auto" else self.layer
            args.append(get_layer(prepared.module, name))
        attribute = self._class()(*args, **self.init_args).attribute
        takes_target = "target" in inspect.signature(attribute).parameters
        with _same_attributes(prepared.module):
            attributions = attribute(images, **({"target": target} if takes_target else {}), **self.call_args)
        volume = (attributions[0] if isinstance(attributions, tuple) else attributions).detach()
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
            raise ValueError(f"expected a class of captum.attr, got {self.algorithm!r}; choose one of {known}.")
        return getattr(captum.attr, self.algorithm)


@contextmanager
def _same_attributes(module: nn.Module) -> Iterator[None]:
    # Restores what some algorithms leave on the modules when they fail: tensors, rules and hooks.
    before = [
        (m, dict(vars(m)), {k: v.copy() for k, v in vars(m).items() if k.endswith("_hooks")}) for m in module.modules()
    ]
    try:
        yield
    finally:
        for m, attributes, hooks in before:
            vars(m).clear()
            vars(m).update(attributes)
            for name, values in hooks.items():
                attributes[name].clear()
                attributes[name].update(values)


class _Logits(nn.Module):
    # captum expects a module; registering the model as a child lets captum's hooks reach the layers.
    def __init__(self, prepared: PreparedModel) -> None:
        super().__init__()
        self.module, self.prepared = prepared.module, prepared

    def forward(self, images: Tensor) -> Tensor:
        logits = self.prepared.logits_in(self.prepared.run(images))
        return (
            torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits
        )  # one logit stands for two classes, as in `score`
