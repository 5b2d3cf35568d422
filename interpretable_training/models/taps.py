"""Record the outputs of some modules of a network, also in compiled and exported networks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.feature_grids import first_tensor


class ModuleRun(NamedTuple):
    """Run of a module, with its first input and its output."""

    name: str
    module: nn.Module
    input: Any
    output: Any

    @property
    def tensor(self) -> Tensor | None:
        """The output, or the first of several."""
        return first_tensor(self.output)


def run_modules(
    backbone: nn.Module, x: Tensor, head: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> tuple[list[ModuleRun], Any]:
    """Return the modules in the order in which they finish, and the output of the backbone or of its head."""
    ran: list[ModuleRun] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            given = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
            ran.append(ModuleRun(name, module, given, output))

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True) for name, module in backbone.named_modules() if name
    ]
    try:
        return ran, backbone(x) if head is None else head(backbone, x)
    except Exception as error:
        what = f"images {tuple(x.shape)}" if head is None else f"pooled features {tuple(x.shape)} in its head"
        raise ValueError(
            f"expected {type(backbone).__name__} to accept {what}, got {type(error).__name__}: {error}; "
            "pass image_size= with the side of its images, and stages= and head= with names of its modules."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


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
