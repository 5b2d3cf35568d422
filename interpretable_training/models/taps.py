"""Record the outputs of some modules of a network, also in compiled and exported networks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class _AllRecordedError(Exception):
    """End a pass after the last tap."""


class Taps:
    """Permanent forward hooks that record outputs only while `run` is active.

    Hooks that are added and removed in each call would break the graph of `torch.compile`.

    Args:
        network: Module that contains all taps.
        names: Names of the modules to record.
        outputs: Number of their outputs in one pass; more than `names` where a module runs several times.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], outputs: int) -> None:
        self.names, self.outputs = tuple(names), outputs
        self.recorded: dict[str, Any] | None = None
        self.remaining: int | None = None  # outputs until the pass may end; None: it runs to its end
        self.handles = [
            network.get_submodule(name).register_forward_hook(partial(self._record, name)) for name in names
        ]

    def _record(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.recorded is not None:
            self.recorded[name] = output
            if self.remaining is not None:
                self.remaining -= 1
                if not self.remaining:
                    raise _AllRecordedError

    def run(self, network: nn.Module, images: Tensor, whole: bool = True) -> tuple[Any, list[Any]]:
        """Return the output of the network, and the outputs of the modules as the rest of the network receives them.

        Unless `whole`, the pass ends after the last module, and the output of the network is None. A compiler removes
        unused operations itself.
        """
        if not torch.compiler.is_compiling():
            for handle in self.handles:  # run after hooks that were added later and may replace the output
                hooks = handle.hooks_dict_ref()
                if hooks is not None and handle.id in hooks:
                    hooks.move_to_end(handle.id)
        self.recorded, output = {}, None
        self.remaining = None if whole or torch.compiler.is_compiling() else self.outputs
        try:
            output = network(images)
        except _AllRecordedError:
            pass
        else:
            output = output if whole else None
        finally:
            recorded, self.recorded, self.remaining = self.recorded, None, None
        return output, [recorded.get(name) for name in self.names]
