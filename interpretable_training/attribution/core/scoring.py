"""Run a network many times without graph, faster and equal to rounding.

    BN(W * x + b) = (s W) * x + s (b - m) + t,    s = g / sqrt(v + eps)    (1)

W, b: of a convolution or linear layer. m, v: running mean and variance of the batch norm that gets its output, and
nothing else does. g, t: weight and bias of the batch norm. Weights of convolutions are also packed once for the CPU.

The module stays as it is: while it runs, a mode of torch replaces both functions. Pairs are found by the tensors that a
pass hands from one function to the other, and checked in each later pass; one that differs runs again without the mode.
What is folded depends on the network and the passes alone, never on measured time: the same calls give the same
numbers each time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._compat import global_hooks, hooks_of, packs_weights
from .compiled_passes import CompiledPasses, equal_to_rounding
from .folded_layers import FoldedLayer, Folding
from .layer_pairs import Linear, Watch, named_tensors
from .named_globals import sharded
from .sharded_parameters import is_sharded

WIDE = (torch.float32, torch.float64)
# Time on a CPU in units of what writing one number by a batch norm takes; see benchmarks/bench_scoring.py.
CALL = 50_000  # of a function that the mode replaces or passes on
SETUP = 16  # of a number in a weight that is folded and packed
WEIGHT = 1.5  # of a number in a weight that is packed once instead of in each pass
DIFFERS = "its passes differ from each other"
NAMED = 5  # batch norms in a fact
Run = Callable[[Tensor], Any]


@dataclass
class Plan:
    """Layers that a network lets fold, and the time that folding saves.

    layers: by the names of their weights. norms: names of all batch norms. calls: functions of a pass. elements:
    numbers that foldable batch norms write, for each number of the images. weights: numbers in the weights of
    convolutions. refused: why nothing is folded.
    """

    layers: dict[str, Linear]
    norms: set[str]
    calls: int
    elements: float
    weights: int
    refused: str | None = None
    checked: bool = False  # whether a folded pass was compared with a plain one

    def saves(self, images: Tensor) -> float:
        """Return the time that folding saves in a pass, without what the mode takes, which each function pays for."""
        return self.elements * images.numel() + WEIGHT * self.weights - CALL * self.calls

    def unfolded(self) -> list[str]:
        """Return the names of batch norms that run as they are."""
        folded = set() if self.refused else {layer.norm.mean for layer in self.layers.values() if layer.norm}
        return sorted(name.removesuffix(".running_mean") for name in self.norms - folded)


def folding_of(module: nn.Module) -> str | None:
    """Return how many batch norms fast passes fold, and the names of others; None if no pass was large enough."""
    plan = _plans.get(module)
    if plan is None or not plan.checked or not plan.norms:
        return None
    others = plan.unfolded()
    reason = f", because {plan.refused}" if plan.refused else ""
    names = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
    folded = f"{len(plan.norms) - len(others)} of {len(plan.norms)} folded"
    return f"{folded}; not {names}{reason}" if others else folded


# A memo: the plan depends on the structure of the network alone.
_plans: WeakKeyDictionary[nn.Module, Plan] = WeakKeyDictionary()


@dataclass
class Scoring:
    """The fast passes of one prepared model, or of several of the same weights.

    Layers are folded once passes without them have missed what folding takes, or from the first pass on if `at_once`:
    then what a pass returns does not depend on those before it.

    dtype: run passes of float32 images under autocast to it. compiled: passes of shapes that come often.
    """

    at_once: bool = False
    dtype: torch.dtype | None = None
    compiled: CompiledPasses | None = None
    layers: dict[int, FoldedLayer] | None = None  # by the id of their weights; None: not built yet
    missed: float = 0.0  # time that folding would have saved so far
    refused: list[str] = field(default_factory=list)  # errors of channels last

    def fact(self) -> str:
        """Return the precision of passes without graph where it is another one than that of the network."""
        return "" if self.dtype is None else f", passes without gradient in {str(self.dtype).removeprefix('torch.')}"

    def run(self, module: nn.Module, run: Run, images: Tensor, alone: bool = True) -> Any:
        """Return `run(images)` up to rounding, for passes without graph.

        Args:
            alone: whether `run` takes any number of images and runs without autocast.
        """
        if self.dtype is None or torch.is_grad_enabled() or images.dtype != torch.float32:
            return self._in_layout(module, run, images, alone)
        with torch.autocast(images.device.type, self.dtype):
            output = self._in_layout(module, run, images, alone)
        return apply_to_collection(output, Tensor, _widened, allow_frozen=True)

    def _in_layout(self, module: nn.Module, run: Run, images: Tensor, alone: bool) -> Any:
        if images.ndim == 4 and images.device.type == "cpu" and not self.refused:
            try:
                return self._run(module, run, images.contiguous(memory_format=torch.channels_last), alone)
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):  # raised by `view` in this layout
                    raise
                self.refused.append(str(error))
        return self._run(module, run, images, alone)

    def _run(self, module: nn.Module, run: Run, images: Tensor, alone: bool) -> Any:
        if torch.is_grad_enabled() or not alone or images.dtype not in WIDE:
            return run(images)
        if self.compiled is not None and not _forbids(module):
            output = self.compiled.output_of(module, run, images)
            if output is not None:
                return output
        if images.device.type != "cpu":
            return run(images)
        plan = _plans.get(module)
        if plan is None:
            if _forbids(module):
                return run(images)
            output = self._watch(module, run, images)
            if not self.at_once:
                return output
            plan = _plans[module]
        due, saved = self.at_once or self.missed > SETUP * plan.weights, plan.saves(images)
        self.missed += max(saved, 0.0)
        if plan.refused is not None or saved <= 0 or not due:
            return run(images)
        if self.layers is None:
            self.layers = {} if _forbids(module) else folded_layers(plan, module, self.dtype)
        if not self.layers:
            return run(images)
        if not plan.checked:
            plan.checked = True
            plan.refused = _refusal(self.layers if self.dtype is None else folded_layers(plan, module), run, images)
            if plan.refused is not None:
                return run(images)
        mode = Folding(self.layers)
        output = mode.output_of(run, images)
        if mode.differs:
            plan.refused = DIFFERS
            return run(images)
        return output

    def _watch(self, module: nn.Module, run: Run, images: Tensor) -> Any:
        """Return the output of a pass, and make the plan of the network."""
        watch = Watch(module)
        with watch:
            output = run(images)
        layers, tensors = watch.layers, named_tensors(module)
        weights = sum(tensors[name].numel() for name, layer in layers.items() if layer.function is torch.conv2d)
        plan = Plan(layers, watch.norms, watch.calls, watch.elements / images.numel(), weights)
        self.missed, _plans[module] = max(plan.saves(images), 0.0), plan  # as if the plan had been known
        return output


def _refusal(layers: dict[int, FoldedLayer], run: Run, images: Tensor) -> str | None:
    """Return why layers are not folded, by a folded and a plain pass in full precision; None if nothing forbids it."""
    with torch.autocast(images.device.type, enabled=False):
        mode = Folding(layers)
        output = mode.output_of(run, images)
        if mode.differs:
            return DIFFERS
        return None if equal_to_rounding(run(images), output) else "its output differs"


def _forbids(module: nn.Module) -> bool:
    """Whether the module must run as it is: sharded or lazy parameters, hooks on every module, layers in train mode."""
    modules = list(module.modules())
    kinds: set[Any] = {type(m) for m in modules}
    return (
        global_hooks()
        or is_sharded(module)
        or any(map(sharded, kinds))
        or any(m.training and not isinstance(m, nn.RNNBase) for m in modules)
        or any(is_lazy(p) for p in module.parameters())
    )


def folded_layers(plan: Plan, module: nn.Module, dtype: torch.dtype | None = None) -> dict[int, FoldedLayer]:
    """Return the layers of a plan that make a difference, by the id of their weights, for passes in a dtype."""
    tensors, packs = named_tensors(module), packs_weights()
    layers = {}
    for weight, layer in plan.layers.items():
        names = [name for name in (weight, layer.bias, *(layer.norm or ())[:4]) if name is not None]
        if any(not _is_plain(tensors.get(str(name))) for name in names) or _is_read(module, weight, layer):
            continue
        folded = FoldedLayer(layer, weight, tensors, packs, dtype)
        if folded.norm is not None or folded.packs or dtype is not None:
            layers[id(tensors[weight])] = folded
    return layers


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor holds numbers of at least 32 bits by itself: not quantized, wrapped or half."""
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.dtype in WIDE and tensor.layout == torch.strided


def _is_read(module: nn.Module, weight: str, layer: Linear) -> bool:
    """Whether hooks of the user may read what the layer hands to its batch norm."""
    owners = [weight] if layer.norm is None else [weight, layer.norm.mean]
    return any(hooks_of(module.get_submodule(name.rpartition(".")[0])) for name in owners)


def _widened(tensor: Tensor) -> Tensor:
    """Return half precision as float32, in which probabilities are computed."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
