"""The gradient of a loss with respect to images, plain and guided, both of one forward pass.

    d  = dL/dx                                                              (1)
    d' = dL/dx, where each activation lets pass positive values only      (2)

x: images (B, C, H, W), or the output of a layer. L: loss of a batch. The rule of (2) is `attribution.rules`'.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interpretable_training.attribution.core._compat import at_end_of_backward, compiler_is_imported, is_compiled
from interpretable_training.attribution.core.activation_gates import Gates, Scope, gates, no_gates
from interpretable_training.attribution.core.capture import ran, tap
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model, unwrap
from interpretable_training.attribution.core.state import same_state

from .quick import Quick

Criterion = Callable[[Any, Any], Tensor]
INSTEAD = "Pass scope='all', take the gradient at an earlier layer, or train without this regularizer."


class Run:
    """A forward pass that was run inside `record`, whose loss can be differentiated by both rules, and again."""

    def __init__(self, model: nn.Module, mode: Gates, quick: Quick, at: str, kept: dict[str, Any]) -> None:
        self.model, self.gates, self.quick, self.at, self.kept = model, mode, quick, at, kept

    def leaf(self, images: Tensor) -> Tensor:
        """A copy of images, to differentiate with respect to; the images themselves where a layer's output is asked."""
        if not images.is_floating_point():
            raise TypeError(f"expected floating point images, normalized as in training, got {images.dtype}.")
        if self.at != "input":
            return images
        self.x = images.detach().requires_grad_()
        return self.x.clone()  # the first layer may work in place

    def gradient(self, loss: Tensor, guided: bool, keep: bool = True, create_graph: bool = False) -> Tensor:
        """(1) or (2), float32 at least, for which the graph is kept unless it is the last."""
        x = self.x if self.at == "input" else ran(self.kept, self.at)[-1]
        self.gates.on, self.gates.fired, self.quick.switch.inputs_only = guided, 0, True
        # Checkpointed parts run again in each pass back: as they ran at first, and their statistics do not count.
        guard = same_state(unwrap(self.model)) if self.quick.watched else nullcontext()
        try:
            with guard, sdpa_kernel(SDPBackend.MATH):
                d = torch.autograd.grad(loss, x, retain_graph=keep, create_graph=create_graph, allow_unused=True)[0]
        finally:
            self.gates.on, self.quick.switch.inputs_only = False, False
        if d is None:
            raise ValueError(
                f"expected a loss that depends on the {self.at} of {type(self.model).__name__}, got one that does not; "
                "is a part of the model detached, or run under no_grad or reentrant checkpointing?"
            )
        if guided and self.gates.fired == 0:
            raise ValueError(no_gates("guided", self.gates.scope, self.model, INSTEAD))
        if create_graph and self.quick.watched:
            d.register_hook(attend_by_math)
        return d.float() if d.dtype in (torch.float16, torch.bfloat16) else d


@contextmanager
def record(model: nn.Module, at: str = "input", scope: Scope = "all") -> Iterator[Run]:
    """Run the forward pass of `model` inside, and the loss inside or later.

    Args:
        at: "input" for gradients with respect to what `Run.leaf` returned, or the dotted name of a layer of `model`.
        scope: guide "all" activations that run or only registered "modules".
    """
    say_eager(model)
    with ExitStack() as stack:
        mode = stack.enter_context(gates("guided", scope, model, INSTEAD))
        assert mode is not None
        if compiler_is_imported():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the other kernels have no second derivative
        kept = {} if at == "input" else stack.enter_context(tap(unwrap(model), [at]))
        quick = stack.enter_context(Quick())
        stack.enter_context(mode)
        yield Run(model, mode, quick, at, kept)


def attend_by_math(_: Tensor) -> None:
    """Hook of d: until the end of the backward pass that it belongs to, checkpointed attention runs again as before."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    at_end_of_backward(stack.close)


def run_eagerly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that is not compiled, even where what calls it is."""
    if not compiler_is_imported():
        return function(*args)
    return torch.compiler.disable(function)(*args)


def say_eager(model: nn.Module) -> None:
    """Warn, once, that compiled modules do not run compiled here."""
    if any(map(is_compiled, model.modules())):
        warnings.warn(
            f"{type(unwrap(model)).__name__} is compiled, and compiled modules cannot be differentiated twice: steps "
            "with guided gradients run eagerly",
            stacklevel=1,
        )


def input_gradient(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion = F.cross_entropy,
    *,
    at: str = "input",
    create_graph: bool = False,
) -> Tensor:
    """(1), of the shape of images (B, C, H, W) or of the output of the layer `at`.

    The model runs in the mode that it is in, and is left as it came: buffers and random generators, too.

    Args:
        target: second argument of the criterion.
        criterion: function of what the model returns and the target.
        create_graph: make the gradient differentiable with respect to the parameters.
    """
    return _gradients(model, images, target, criterion, at, "all", create_graph, guided=(False,))[0]


def guided_gradient(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion = F.cross_entropy,
    *,
    at: str = "input",
    scope: Scope = "all",
    create_graph: bool = False,
) -> Tensor:
    """(2), like `input_gradient`; which activations were positive is constant where it is differentiated."""
    return _gradients(model, images, target, criterion, at, scope, create_graph, guided=(True,))[0]


def both_gradients(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion = F.cross_entropy,
    *,
    at: str = "input",
    scope: Scope = "all",
) -> tuple[Tensor, Tensor]:
    """(1) and (2) of one forward pass, without graph."""
    d, d2 = _gradients(model, images, target, criterion, at, scope, False, guided=(False, True))
    return d, d2


def _gradients(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion,
    at: str,
    scope: Scope,
    create_graph: bool,
    guided: tuple[bool, ...],
) -> list[Tensor]:
    with prepare_model(model, keep_mode=True, create_graph=create_graph) as prepared:
        if isinstance(target, Tensor):
            target = target.clone()  # of validation, made under inference mode
        with record(prepared.module, at, scope) as run:
            output = prepared.run(run.leaf(prepare(prepared, images)))
        loss = criterion(output, target)
        last = len(guided) - 1
        return [
            run.gradient(loss, which, keep=create_graph or i < last, create_graph=create_graph)
            for i, which in enumerate(guided)
        ]
