"""Two callbacks around those under test, which record the state of a training at every hook."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from torch import Tensor

from .state_snapshot import Key, bit_digest, collect, generators, leaves

STEPS = ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
HOOKS = (
    "setup",
    "on_fit_start",
    "on_sanity_check_start",
    "on_sanity_check_end",
    *(f"on_{stage}_{step}" for stage in ("train", "validation", "test", "predict") for step in STEPS),
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_fit_end",
    "teardown",
)
# Lightning has computed the logged values before these hooks. Reading them earlier would compute them too early.
LOGGED = ("on_train_epoch_start", "on_train_end", "on_validation_end", "on_test_end")


@dataclass(frozen=True)
class HookState:
    """State at one hook: a digest of each part."""

    label: str
    digests: Mapping[Key, str]


@dataclass
class StateRecord:
    """States of one training at all hooks in order, and its tensors at the end."""

    moments: list[HookState] = field(default_factory=list)
    end: HookState = HookState("at the end", {})
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    rank: int = 0
    world_size: int = 1

    def callbacks(self, given: list[L.Callback]) -> list[L.Callback]:
        """Return the given callbacks between two that record the state."""
        return [StateRecorder(self, "before"), *given, StateRecorder(self, "in")]

    def add_generators(self, label: str) -> None:
        """Record the random generators, before a trainer exists."""
        self.moments.append(HookState(label, _digests(generators())))

    def add_end(self, trainer: L.Trainer) -> None:
        """Record the state after the training, with copies of the tensors."""
        state = collect(trainer, trainer.lightning_module)
        self.end = HookState("at the end", _digests(state))
        self.moments.append(self.end)
        self.tensors = {k: v.detach().to("cpu", copy=True) for k, v in state.items() if isinstance(v, Tensor)}
        self.rank, self.world_size = trainer.global_rank, trainer.world_size


class StateRecorder(L.Callback):
    """Record the state in each hook."""

    def __init__(self, record: StateRecord, when: str) -> None:
        self.record, self.when = record, when

    def add(self, hook: str, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Add the state at a hook to the record."""
        state = collect(trainer, module)
        if _during_evaluation(hook, self.when):
            state = {key: value for key, value in state.items() if key[0] != "hooks"}
        for kind, value in _hook_values(hook, args).items():
            state |= {(kind, path.removeprefix(".") or "all"): leaf for path, leaf in leaves(value)}
        if hook in LOGGED:
            state |= {("logged", name): value for name, value in trainer.callback_metrics.items()}
        label = f"{_progress(trainer)} {self.when} {_hook_name(hook, args)}"
        self.record.moments.append(HookState(label, _digests(state)))


def _recording_hook(name: str) -> Callable[..., None]:
    """Return a hook that records the state."""

    def hook(self: StateRecorder, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **stage: str) -> None:
        self.add(name, trainer, pl_module, *args)

    return hook


for name in HOOKS:
    setattr(StateRecorder, name, _recording_hook(name))


def _digests(state: Mapping[Key, Any]) -> dict[Key, str]:
    """Return a digest of each part."""
    return {key: bit_digest(value) for key, value in state.items()}


def _hook_values(hook: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments of a hook by name: batch, output of the step, loss."""
    if hook.endswith("batch_start"):
        return {"batch": args[0]}
    if hook.endswith("batch_end"):
        return {"output": args[0], "batch": args[1]}
    return {"loss": args[0]} if hook == "on_before_backward" else {}


def _during_evaluation(hook: str, when: str) -> bool:
    """Whether a hook belongs to a batch of validation, test or prediction, in which callbacks may use forward hooks."""
    begun = "batch_start" in hook and when == "in"
    return "train" not in hook and (begun or ("batch_end" in hook and when == "before"))


def _hook_name(hook: str, args: tuple[Any, ...]) -> str:
    """Return the name of a hook, with the number of its batch in validation, test and prediction."""
    if "batch_" not in hook or "train" in hook:
        return hook
    return f"{hook} {args[1 if hook.endswith('start') else 2]}"


def _progress(trainer: L.Trainer) -> str:
    """Return the progress of the training in words."""
    if trainer.state.fn != "fit":
        return f"trainer.{trainer.state.fn}"
    return f"after step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
