"""Two callbacks, one before and one after those under test, that note the state of a training at every hook."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from torch import Tensor

from .state_snapshot import Key, collect, generators, leaves, mark

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
# Lightning has computed what was logged before these hooks. Asked earlier, it would compute, and keep, too early.
LOGGED = ("on_train_epoch_start", "on_train_end", "on_validation_end", "on_test_end")


@dataclass(frozen=True)
class Moment:
    """When, and a mark of each part of the state."""

    label: str
    marks: Mapping[Key, str]


@dataclass
class Record:
    """What one training leaves: its moments in order, and its tensors at the end."""

    moments: list[Moment] = field(default_factory=list)
    end: Moment = Moment("at the end", {})
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    rank: int = 0
    world_size: int = 1

    def callbacks(self, given: list[L.Callback]) -> list[L.Callback]:
        """Those given, between the two that note."""
        return [Turn(self, "before"), *given, Turn(self, "in")]

    def note_generators(self, label: str) -> None:
        """Note the random generators, where there is no trainer yet."""
        self.moments.append(Moment(label, marks(generators())))

    def note_end(self, trainer: L.Trainer) -> None:
        """Note what is left when all is over, with copies of the tensors."""
        state = collect(trainer, trainer.lightning_module)
        self.end = Moment("at the end", marks(state))
        self.moments.append(self.end)
        self.tensors = {k: v.detach().to("cpu", copy=True) for k, v in state.items() if isinstance(v, Tensor)}
        self.rank, self.world_size = trainer.global_rank, trainer.world_size


class Turn(L.Callback):
    """Notes the state when it is its turn in a hook."""

    def __init__(self, record: Record, when: str) -> None:
        self.record, self.when = record, when

    def note(self, hook: str, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        state = collect(trainer, module)
        if during_evaluation(hook, self.when):
            state = {key: value for key, value in state.items() if key[0] != "hooks"}
        for kind, value in named(hook, args).items():
            state |= {(kind, path.removeprefix(".") or "all"): leaf for path, leaf in leaves(value)}
        if hook in LOGGED:
            state |= {("logged", name): value for name, value in trainer.callback_metrics.items()}
        self.record.moments.append(Moment(f"{place(trainer)} {self.when} {numbered(hook, args)}", marks(state)))


def hook_named(name: str) -> Callable[..., None]:
    """The hook that notes."""

    def hook(self: Turn, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **stage: str) -> None:
        self.note(name, trainer, pl_module, *args)

    return hook


for name in HOOKS:
    setattr(Turn, name, hook_named(name))


def marks(state: Mapping[Key, Any]) -> dict[Key, str]:
    """A mark of each part."""
    return {key: mark(value) for key, value in state.items()}


def named(hook: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """What the hook was given: batch, output of the step, loss."""
    if hook.endswith("batch_start"):
        return {"batch": args[0]}
    if hook.endswith("batch_end"):
        return {"output": args[0], "batch": args[1]}
    return {"loss": args[0]} if hook == "on_before_backward" else {}


def during_evaluation(hook: str, when: str) -> bool:
    """Whether a batch of validation, test or prediction is under way: who only listens to it, by a hook, may."""
    begun = "batch_start" in hook and when == "in"
    return "train" not in hook and (begun or ("batch_end" in hook and when == "before"))


def numbered(hook: str, args: tuple[Any, ...]) -> str:
    """The hook, with the number of its batch in validation, test and prediction."""
    if "batch_" not in hook or "train" in hook:
        return hook
    return f"{hook} {args[1 if hook.endswith('start') else 2]}"


def place(trainer: L.Trainer) -> str:
    """How far the training is."""
    if trainer.state.fn != "fit":
        return f"trainer.{trainer.state.fn}"
    return f"after step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
