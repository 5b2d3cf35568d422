"""Keep what some modules of a network return, also where it is compiled or exported."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class _AllKeptError(Exception):
    """Ends a pass behind the last tap."""


class Taps:
    """Forward hooks that stay and keep nothing but while `run` is active.

    Hooks that come and go with each call would end `torch.compile`'s graph.

    Args:
        network: the module around all taps.
        names: the modules whose outputs are kept.
        outputs: how many outputs they return in one pass; more than `names` where one of them runs several times.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], outputs: int) -> None:
        self.names, self.outputs = tuple(names), outputs
        self.found: dict[str, Any] | None = None
        self.left: int | None = None  # outputs until the pass may end; None: it runs to its end
        self.handles = [network.get_submodule(name).register_forward_hook(partial(self._keep, name)) for name in names]

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.found is not None:
            self.found[name] = output
            if self.left is not None:
                self.left -= 1
                if not self.left:
                    raise _AllKeptError

    def run(self, network: nn.Module, images: Tensor, whole: bool = True) -> tuple[Any, list[Any]]:
        """Return the output of the network, and those of the modules as the rest of the network receives them.

        Unless `whole`, the pass ends behind the last of them and nothing (None) is returned. A compiler leaves out by
        itself what nobody uses.
        """
        if not torch.compiler.is_compiling():
            for handle in self.handles:  # behind hooks that others added meanwhile and that may replace the output
                hooks = handle.hooks_dict_ref()
                if hooks is not None and handle.id in hooks:
                    hooks.move_to_end(handle.id)
        self.found, output = {}, None
        self.left = None if whole or torch.compiler.is_compiling() else self.outputs
        try:
            output = network(images)
        except _AllKeptError:
            pass
        else:
            output = output if whole else None
        finally:
            found, self.found, self.left = self.found, None, None
        return output, [found.get(name) for name in self.names]
