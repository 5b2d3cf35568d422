"""The state of a training that watching callbacks must not change, bit for bit.

`collect` returns every part by name; `bit_digest` returns a short text that is equal only for equal bits.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from interpretable_training.attribution.core.checksum import checksums

Key = tuple[str, str]  # kind and name: ("weight", "network.0.bias")
HOOKS = {
    "forward pre-hook": "_forward_pre_hooks",
    "forward hook": "_forward_hooks",
    "backward pre-hook": "_backward_pre_hooks",
    "backward hook": "_backward_hooks",
    "gradient hook": "_post_accumulate_grad_hooks",
    "state_dict pre-hook": "_state_dict_pre_hooks",
    "state_dict hook": "_state_dict_hooks",
    "load_state_dict pre-hook": "_load_state_dict_pre_hooks",
    "load_state_dict hook": "_load_state_dict_post_hooks",
}


def _set_cudnn(**flags: bool) -> None:
    """Set flags of cuDNN."""
    for name, flag in flags.items():
        setattr(torch.backends.cudnn, name, flag)


SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {  # flags of torch for the whole process
    "grad enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "cudnn": (
        lambda: {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "enabled")},
        lambda value: _set_cudnn(**value),
    ),
}


@contextmanager
def same_switches() -> Iterator[None]:
    """Restore torch's flags at the end, so that one training does not change the next."""
    before = {name: get() for name, (get, _) in SWITCHES.items()}
    try:
        yield
    finally:
        for name, (get, put) in SWITCHES.items():
            if get() != before[name]:
                put(before[name])


def collect(trainer: L.Trainer, module: L.LightningModule) -> dict[Key, Any]:
    """Return every part of the state; tensors are not copied."""
    return {
        **generators(),
        **_tensors_and_flags(module),
        **_modules(module),
        **_optimizers(trainer, module),
        **_trainer_state(trainer),
    }


def generators() -> dict[Key, Any]:
    """Return the state of the global random generators."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"torch, cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    _, keys, *rest = np.random.get_state()
    _, numbers, gauss = random.getstate()
    states["numpy"] = np.array([*keys, *rest])  # float64, which holds these integers exactly
    states["python"] = np.array([*numbers, gauss or 0.0])
    return {("random generator", name): state for name, state in states.items()}


def _tensors_and_flags(module: nn.Module) -> dict[Key, Any]:
    """Return parameters with gradient and flag, and all buffers."""
    parts: dict[Key, Any] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parts["weight", name] = parameter
        parts["gradient", name] = parameter.grad
        parts["requires_grad", name] = parameter.requires_grad
        parts["hooks", name] = _hooks_of(parameter)
    parts |= {("buffer", name): buffer for name, buffer in module.named_buffers(remove_duplicate=False)}
    return parts


def _modules(module: nn.Module) -> dict[Key, Any]:
    """Return class, mode and hooks of each submodule, and the states of its metrics."""
    parts: dict[Key, Any] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        label = name or type(part).__name__
        parts["class", label] = type(part).__qualname__
        parts["training", label] = part.training
        parts["hooks", label] = _hooks_of(part)
        if isinstance(part, Metric):
            parts |= {("metric state", f"{label}{path}"): leaf for path, leaf in leaves(part.metric_state)}
    names = {kind: f"_global_{hook.removeprefix('_')}" for kind, hook in HOOKS.items()}
    parts["hooks", "all modules"] = _describe_hooks({k: getattr(hooks_of_all, v, None) for k, v in names.items()})
    return parts


def _optimizers(trainer: L.Trainer, module: nn.Module) -> dict[Key, Any]:
    """Return state and options of the optimizers, and state of their schedulers."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parts: dict[Key, Any] = {}
    for i, optimizer in enumerate(trainer.optimizers):
        label = "" if len(trainer.optimizers) == 1 else f"{i}: "
        for parameter, state in optimizer.state.items():
            name = names.get(id(parameter), "a tensor of its own")
            parts |= {("optimizer state", f"{label}{name}{path}"): leaf for path, leaf in leaves(state)}
        for j, group in enumerate(optimizer.param_groups):
            options = {key: value for key, value in group.items() if key != "params"}
            parts |= {("optimizer option", f"{label}group {j}{path}"): leaf for path, leaf in leaves(options)}
            parts["optimizer parameters", f"{label}group {j}"] = [names.get(id(p), "unknown") for p in group["params"]]
    for i, config in enumerate(trainer.lr_scheduler_configs):
        parts |= {("scheduler", f"{i}{path}"): leaf for path, leaf in leaves(config.scheduler.state_dict())}
    return parts


def _trainer_state(trainer: L.Trainer) -> dict[Key, Any]:
    """Return gradient scaler, progress, flags of torch, and the states of the other callbacks."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    parts = {
        ("gradient scaler", path.removeprefix(".")): leaf
        for path, leaf in leaves(scaler.state_dict() if scaler else {})
    }
    parts["trainer", "global_step"] = trainer.global_step
    parts["trainer", "current_epoch"] = trainer.current_epoch
    parts["trainer", "should_stop"] = trainer.should_stop
    parts |= {("switch", name): get() for name, (get, _) in SWITCHES.items()}
    parts["switch", "autocast"] = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        label = type(callback).__name__
        parts |= {("callback", f"{label}{path}"): leaf for path, leaf in leaves(callback.state_dict())}
    return parts


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield tensors, numbers and flags in containers, each with its path; texts, for example folders, are skipped."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = vars(value).items()
    elif isinstance(value, (Tensor, bool, int, float, complex, np.number, np.ndarray)) or value is None:
        yield path, value
        return
    else:
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}")


def _hooks_of(holder: nn.Module | Tensor) -> str:
    """Return the hooks of a module or parameter, with the names of their functions."""
    return _describe_hooks({kind: getattr(holder, attribute, None) for kind, attribute in HOOKS.items()})


def _describe_hooks(hooks: Mapping[str, Mapping[Any, Any] | None]) -> str:
    """Return the hooks of each kind in words."""
    return (
        ", ".join(f"{kind} {_function_name(hook)}" for kind, held in hooks.items() for hook in (held or {}).values())
        or "none"
    )


def _function_name(hook: Any) -> str:
    """Return the full name of a function or of the function that it wraps."""
    hook = getattr(hook, "func", None) or getattr(hook, "hook", None) or hook  # a partial, torch's own wrapper
    return f"{hook.__module__}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"


def bit_digest(value: Any) -> str:
    """Return a text that is equal only for equal bits; for a tensor also type, shape and strides."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(np.ascontiguousarray(value).view(np.uint8))
    if not isinstance(value, Tensor) or is_lazy(value):  # a lazy parameter has no shape yet
        return value if isinstance(value, str) else repr(value)
    dense = value.to_dense() if value.layout != torch.strided else value.clone()  # NumPy's views forbid resizing
    kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{kind} #{checksums({'': dense})['']} {value.device} {dense.stride()}"
