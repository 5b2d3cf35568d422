"""The gradient of a loss with respect to images, plain and guided, both of one forward pass.

    d  = dL/dx                                                              (1)
    d' = dL/dx, where each activation passes positive gradients only        (2)

x: images (B, C, H, W), or the output of a layer. L: loss of a batch. Rule of (2): `core.activation_gates`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interpretable_training.attribution.core._compat import at_end_of_backward, compiler_is_imported, is_compiled
from interpretable_training.attribution.core.activation_gates import Gates, Scope, gates, no_gates
from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.capture import ran, tap
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model, unwrap
from interpretable_training.attribution.core.sharded_parameters import is_sharded
from interpretable_training.attribution.core.state import same_state

from .quick import Quick

Criterion = Callable[[Any, Any], Tensor]
INSTEAD = "Pass scope='all', take the gradient at an earlier layer, or train without this regularizer."


class RecordedForward:
    """Forward pass inside `record_forward`; its loss can be differentiated by both rules, and again."""

    def __init__(
        self, model: nn.Module, gates: Gates | None, quick: Quick, at: str | Sequence[str], outputs: dict[str, Any]
    ) -> None:
        self.model, self.gates, self.quick, self.at, self.outputs = model, gates, quick, at, outputs
        self.x: Tensor | None = None  # images to differentiate with respect to
        self.fired = 0  # activations that the last gradient was guided at

    def leaf(self, images: Tensor) -> Tensor:
        """Return a differentiable copy of images; the images themselves where `at` is a layer."""
        if not images.is_floating_point():
            raise TypeError(
                f"expected floating point images, normalized as in training, got {images.dtype}; call images.float()."
            )
        if self.at != "input":
            return images
        self.x = images.detach().requires_grad_()
        return self.x.clone()  # the first layer may work in place

    def gradient(self, loss: Tensor, guided: bool, keep: bool = True, create_graph: bool = False) -> Tensor:
        """Return (1) or (2), in float32 at least; pass `keep=False` in the last call to free the graph."""
        x = self.x if self.at == "input" else ran(self.outputs, str(self.at))[-1]
        assert x is not None, "call leaf first"
        d = self._follow_rule(loss, x, guided, keep, create_graph)
        if d is None:
            raise ValueError(
                f"expected a loss that depends on the {self.at} of {type(self.model).__name__}, got one that does not; "
                "is a part of the model detached, or run under no_grad or reentrant checkpointing?"
            )
        if guided and self.fired == 0:
            raise ValueError(no_gates("guided", "all" if self.gates is None else self.gates.scope, self.model, INSTEAD))
        return full(d)

    def _follow_rule(self, loss: Tensor, x: Tensor, guided: bool, keep: bool, create_graph: bool) -> Tensor | None:
        """Return the gradient with respect to x by one of the rules."""
        if self.gates is None:
            return self.differentiate(loss, [x], keep, create_graph)[0]
        self.gates.on, self.gates.fired = guided, 0
        try:
            return self.differentiate(loss, [x], keep, create_graph)[0]
        finally:
            self.gates.on, self.fired = False, self.gates.fired

    def differentiate(
        self, loss: Tensor, tensors: Sequence[Tensor], keep: bool = True, create_graph: bool = False
    ) -> list[Tensor | None]:
        """Return the gradients of the loss with respect to tensors of the pass; None for those without effect on it."""
        with self.inputs_only():
            gradients = torch.autograd.grad(
                loss, tensors, retain_graph=keep, create_graph=create_graph, allow_unused=True
            )
        if create_graph and self.quick.checkpointed:
            for gradient in gradients:
                if gradient is not None and gradient.requires_grad:
                    gradient.register_hook(_keep_math_attention)
        return list(gradients)

    @contextmanager
    def inputs_only(self) -> Iterator[None]:
        """Compute no gradients of parameters inside the block, where only those of inputs are asked for."""
        # Checkpointed parts run again in each backward pass: as in the forward pass, and without updating statistics.
        guard = same_state(unwrap(self.model)) if self.quick.checkpointed else nullcontext()
        self.quick.switch.inputs_only = True
        try:
            with guard, sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            self.quick.switch.inputs_only = False


@contextmanager
def record_forward(
    model: nn.Module,
    at: str | Sequence[str] = "input",
    scope: Scope = "all",
    rule: Literal["plain", "guided"] = "guided",
) -> Iterator[RecordedForward]:
    """Record the forward pass of `model` that runs inside the block; compute the loss inside or later.

    Args:
        at: "input" for gradients with respect to the result of `leaf`, or the dotted name of a layer of `model`, or of
            several for `differentiate`.
        scope: Guide "all" activations that run or only registered "modules".
        rule: "plain" records no guided gradients.
    """
    _refuse_sharded(model)
    _warn_compiled(model)
    with ExitStack() as stack:
        mode = stack.enter_context(gates(rule, scope, model, INSTEAD))
        if compiler_is_imported():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the other kernels have no second derivative
        layers = [at] if isinstance(at, str) else at
        outputs = {} if at == "input" else stack.enter_context(tap(unwrap(model), layers))
        quick = stack.enter_context(Quick())
        if mode is not None:
            stack.enter_context(mode)
        yield RecordedForward(model, mode, quick, at, outputs)


def _keep_math_attention(_: Tensor) -> None:
    """Hook of d: use the same attention kernel when checkpointed attention runs again in the backward pass."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    at_end_of_backward(stack.close)


def run_eagerly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function outside of torch's compiler, even where its caller is compiled."""
    if not compiler_is_imported():
        return function(*args)
    return torch.compiler.disable(function)(*args)


def _refuse_sharded(model: nn.Module) -> None:
    """Raise an error before a pass that other processes would wait for, or that gives other gradients."""
    if is_sharded(model):
        raise ValueError(
            "expected a model with whole parameters that stay for both gradients of a pass, got a "
            f"{type(unwrap(model)).__name__} whose parameters are spread over processes (FSDP2 or tensor parallelism); "
            "train with DDP, or with weight=0."
        )


def _warn_compiled(model: nn.Module) -> None:
    """Warn once that compiled modules run eagerly."""
    if any(is_compiled(module) for module in model.modules()):
        warnings.warn(
            f"{type(unwrap(model)).__name__} is compiled, and compiled modules cannot be differentiated twice: "
            "regularized steps run eagerly",
            stacklevel=1,
        )


def loss_gradient(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion = F.cross_entropy,
    *,
    at: str = "input",
    create_graph: bool = False,
) -> Tensor:
    """Return (1), in the shape of images (B, C, H, W) or of the output of the layer `at`.

    The model runs in its present mode; its buffers and the random generators do not change.

    >>> loss_gradient(network, images, target).shape
    torch.Size([4, 3, 16, 16])

    Args:
        target: Second argument of the criterion.
        criterion: Function of the model's output and the target.
        create_graph: Make the gradient differentiable with respect to the parameters.
    """
    return _gradients(model, images, target, criterion, at, "all", create_graph, guided=(False,))[0]


def guided_loss_gradient(
    model: nn.Module,
    images: Tensor,
    target: Any,
    criterion: Criterion = F.cross_entropy,
    *,
    at: str = "input",
    scope: Scope = "all",
    create_graph: bool = False,
) -> Tensor:
    """Return (2), like `loss_gradient`; its derivative treats the signs of activations as constants.

    >>> guided_loss_gradient(network, images, target).shape
    torch.Size([4, 3, 16, 16])
    """
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
    """Return (1) and (2) of one forward pass, without graph.

    >>> [d.shape for d in both_gradients(network, images, target)]
    [torch.Size([4, 3, 16, 16]), torch.Size([4, 3, 16, 16])]
    """
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
            target = target.clone()  # targets of validation are made under inference mode
        with record_forward(prepared.module, at, scope) as recorded:
            output = prepared.run(recorded.leaf(prepare(prepared, images)))
        loss = criterion(output, target)
        last = len(guided) - 1
        return [
            recorded.gradient(loss, which, keep=create_graph or i < last, create_graph=create_graph)
            for i, which in enumerate(guided)
        ]
