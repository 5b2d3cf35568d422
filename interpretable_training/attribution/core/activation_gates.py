"""Backward rules at activations: guided backpropagation and the deconvolution network.

    guided:  g_in = psi'(z) [g_out]+ 1[z > 0]    (1)  for ReLU: g_out where z > 0 and g_out > 0
    deconv:  g_in = [g_out]+                     (2)

z: input of the activation psi. Guided: Springenberg et al., 2015, https://arxiv.org/abs/1412.6806; deconv: Zeiler
and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901. Beyond ReLU and ReLU6, (1) is an extension of this package.

Functional calls are intercepted during the forward pass. This covers modules, functions, methods, reused and in-place
activations, and changes no module.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Rule = Literal["plain", "guided", "deconv"]
Scope = Literal["all", "modules"]
RELUS = {
    F.relu,
    F.relu_,
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
    F.relu6,
    F.hardtanh,
    F.hardtanh_,
}
SMOOTH = {
    F.gelu,
    F.silu,
    F.elu,
    F.elu_,
    F.celu,
    F.selu,
    F.mish,
    F.hardswish,
    F.leaky_relu,
    F.leaky_relu_,
    F.softplus,
}
CLAMPS = {torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, torch.clip, torch.clip_}
CLAMPS |= {Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_, Tensor.clip, Tensor.clip_}
MODULES = (
    nn.ReLU,
    nn.Hardtanh,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Mish,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Softplus,
)


class Gates(TorchFunctionMode):
    """Mode that adds gates for the backward pass to activations; `on = False` switches guided gates off afterwards."""

    def __init__(self, rule: Literal["guided", "deconv"], scope: Scope = "all") -> None:
        super().__init__()
        self.rule, self.scope, self.on = rule, scope, True
        self.count = 0  # activations with a gate
        self.fired = 0  # gates that a guided gradient passed
        self.extended = False  # whether a smooth activation was gated
        self.inside = 0  # depth inside registered activation modules

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not _is_activation(func, args, kwargs) or (self.scope == "modules" and not self.inside):
            return func(*args, **kwargs)
        z, args = (args[0], args[1:]) if args else (kwargs.pop("input"), args)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return func(z, *args, **kwargs)
        self.count += 1
        self.extended |= func in SMOOTH and self.rule == "guided"
        gate = self._deconv if self.rule == "deconv" else self._guided
        return gate(func, z, args, kwargs)

    def _guided(self, func: Callable[..., Tensor], z: Tensor, args: Any, kwargs: Any) -> Tensor:
        positive = z.detach() > 0 if func in SMOOTH else None  # the derivative of the others is zero at z <= 0
        out = func(z, *args, **kwargs)

        def gate(g: Tensor | None) -> Tensor | None:
            if not self.on or g is None:  # None: a branch without a second derivative
                return g
            self.fired += 1
            g = g.clamp(min=0)  # (1)
            return g if positive is None else g * positive

        out.register_hook(gate)
        return out

    def _deconv(self, func: Callable[..., Tensor], z: Tensor, args: Any, kwargs: Any) -> Tensor:
        copy = z.detach().clone()
        value = func(copy, *args, **kwargs)
        shift = value - z.detach()
        out = z.add_(shift) if value is copy else z + shift  # the value of psi(z), the gradient of z
        out.register_hook(lambda g: None if g is None else g.clamp(min=0))  # (2)
        return out


def _is_activation(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func in CLAMPS:
        low = args[1] if len(args) > 1 else kwargs.get("min")
        return isinstance(low, (int, float)) and low == 0
    if func in (F.hardtanh, F.hardtanh_):
        return (args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0  # ReLU6 calls hardtanh
    return func in RELUS or func in SMOOTH


@contextmanager
def gates(
    rule: Rule,
    scope: Scope = "all",
    module: nn.Module | None = None,
    instead: str = "Explain an earlier layer or pass 'plain'.",
) -> Iterator[Gates | None]:
    """Yield a mode to enter around a forward pass, None for "plain"; raise an error afterwards if no activation ran.

    Args:
        scope: gate "all" activations, or only those of registered "modules" of `module`, as libraries that replace
            modules do: activations called as functions keep their gradient.
        instead: advice at the end of the error text.
    """
    if rule == "plain":
        yield None
        return
    mode = Gates(rule, scope)
    handles = _count_depth(mode, module) if scope == "modules" and module is not None else []
    try:
        yield mode
    finally:
        for handle in handles:
            handle.remove()
    if mode.extended:
        warnings.warn(
            "guided gates at activations other than ReLU follow an extension of the paper's rule", stacklevel=2
        )
    if mode.count == 0:
        raise ValueError(no_gates(rule, scope, module, instead))


def no_gates(rule: Rule, scope: Scope, module: nn.Module | None, instead: str) -> str:
    """Return the error text for a forward pass without activations for the rule."""
    where = "" if module is None else f" in {type(module).__name__}"
    return (
        f"expected activations (ReLU, GELU, SiLU, ...) between the explained input or layer and the score, none ran"
        f"{where} with scope={scope!r}: the {rule} gradient would be the plain one. {instead}"
    )


def _count_depth(mode: Gates, module: nn.Module) -> list[Any]:
    def enter(*_: Any) -> None:
        mode.inside += 1

    def leave(*_: Any) -> None:
        mode.inside -= 1

    activations = [child for child in module.modules() if isinstance(child, MODULES)]
    return [child.register_forward_pre_hook(enter) for child in activations] + [
        child.register_forward_hook(leave, always_call=True) for child in activations
    ]
