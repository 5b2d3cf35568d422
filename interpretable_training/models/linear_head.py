"""Last linear layer of a network, found by what runs, and what it receives."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.prepared_model import PreparedModel


def find_linear_head(prepared: PreparedModel, images: Tensor, name: str | None) -> tuple[str, nn.Linear]:
    """Return the linear layer whose output are the logits, and its name; refuse a network without one."""
    linear = {key: m for key, m in prepared.module.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in linear:
        raise ValueError(f"expected head as the name of a linear layer, got {name!r}; those are {list(linear)}.")
    returned: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda module, args, result: returned.update({key: result})

    handles = [m.register_forward_hook(keep(key)) for key, m in linear.items()]
    try:
        logits = prepared(images)
    finally:
        for handle in handles:
            handle.remove()
    fitting = [key for key, y in returned.items() if y.shape == logits.shape and torch.equal(y, logits)]
    fitting = [key for key in fitting if name in (None, key) and "weight" in dict(linear[key].named_parameters())]
    if not fitting:
        wanted = "a linear layer" if name is None else f"the linear layer {name!r}"
        raise ValueError(
            f"expected {wanted} whose output are the logits {tuple(logits.shape)}, got none among {list(linear)} of "
            f"{type(prepared.module).__name__}; retrain networks that end in a plain nn.Linear, or pass output= with "
            "what picks the logits."
        )
    return fitting[-1], linear[fitting[-1]]


def inputs_of(prepared: PreparedModel, layer: nn.Linear, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the layer receives (B, d), and the logits."""
    received: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    try:
        logits = prepared(images)
    finally:
        handle.remove()
    return received[-1], logits
