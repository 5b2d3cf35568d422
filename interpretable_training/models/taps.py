"""Keep what some modules of a network return, also where it is compiled or exported."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Taps:
    """Forward hooks that stay and keep nothing but while `run` is active.

    Hooks that come and go with each call would end `torch.compile`'s graph.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.found: dict[str, Any] | None = None
        self.handles = [network.get_submodule(name).register_forward_hook(partial(self._keep, name)) for name in names]

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.found is not None:
            self.found[name] = output

    def run(self, network: nn.Module, images: Tensor) -> tuple[Any, list[Any]]:
        """What the network returns, and the outputs of the modules as the rest of the network sees them."""
        if not torch.compiler.is_compiling():
            for handle in self.handles:  # behind hooks that others added meanwhile and that may replace the output
                hooks = handle.hooks_dict_ref()
                if hooks is not None and handle.id in hooks:
                    hooks.move_to_end(handle.id)
        self.found = {}
        try:
            output = network(images)
            return output, [self.found.get(name) for name in self.names]
        finally:
            self.found = None
