"""Tell whether a callback that watches changes the training it watches.

report = verify_observer(make_trainer, make_module, make_data, TrainingCurves())
report.raise_if_different()

The same training runs without and with the callbacks. Before and after the callbacks' turn at each hook the whole state
is noted, so that the report names the hook in which it first differed. Nothing may differ, not by one bit.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from interpretable_training.attribution.core.prepared_model import same_generators

from .snapshot_callbacks import Record
from .state_snapshot import Key, same_switches

Callbacks = L.Callback | Sequence[L.Callback] | Callable[[], L.Callback | Sequence[L.Callback]]
Stage = Literal["fit", "validate", "test", "predict"]
SHOWN = 40  # differences in the text of a report
OPTIONAL = ("logged", "callback")  # kinds of which one run may have more, and which may hold times of the clock


@dataclass(frozen=True)
class Difference:
    """A part of the training's state that is not what it is without the callbacks.

    Attributes:
        kind: what it is: "weight", "gradient", "training", ...
        name: which of them: of the parameter, submodule, generator, ...
        moment: where it first differed; "in" a hook means that the callbacks did it there.
        without: its value at that moment without the callbacks, as text.
        given: its value at that moment with them, as text.
        position: number of that moment, from 0.
        at_end: what is left of the difference when all is over.
        rank: of the process that saw it.
    """

    kind: str
    name: str
    moment: str
    without: str
    given: str
    position: int
    at_end: str
    rank: int = 0

    @property
    def change(self) -> str:
        """What happened, without the moment."""
        was, now = (text.partition(" #")[0] for text in (self.without, self.given))  # a checksum tells a reader nothing
        change = "has other values" if was == now else f"is {now}, was {was}"
        return f"{self.kind} of {self.name} {change}{'; ' * bool(self.at_end)}{self.at_end}"

    @property
    def where(self) -> str:
        """The moment, and the process where it is not the first one."""
        return f"rank {self.rank}, {self.moment}" if self.rank else self.moment

    def __str__(self) -> str:
        return f"{self.where}: {self.change}"


@dataclass(frozen=True, repr=False)
class Report:
    """What `verify_observer` found; true if the callbacks changed nothing.

    Attributes:
        differences: each part of the state that the callbacks changed, the first one first.
        noise: each part that differs between two trainings without the callbacks; of these nothing can be said.
        moments: how often the state was compared.
    """

    differences: tuple[Difference, ...]
    noise: tuple[Difference, ...]
    moments: int

    @property
    def reproducible(self) -> bool:
        """Whether the training repeats itself; logged times of the clock need not."""
        return all(difference.kind in OPTIONAL for difference in self.noise)

    @property
    def ok(self) -> bool:
        return self.reproducible and not self.differences

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = []
        if not self.reproducible:
            lines += [
                "This training does not repeat itself: two runs without the callbacks differ in what follows.",
                "Seed what draws (data, samplers, workers) or pass Trainer(deterministic=True); then ask again.",
                *listed([difference for difference in self.noise if difference.kind not in OPTIONAL]),
            ]
        if self.differences:
            lines += [
                "The callbacks changed the training. What differs, each where it first did:",
                *listed(self.differences),
            ]
        if self.ok:
            lines.append(f"The callbacks changed nothing: the state was compared at {self.moments} moments.")
        ignored = [f"{d.kind} {d.name}" for d in self.noise if d.kind in OPTIONAL]
        if ignored:
            lines.append(f"Left out, since they differ from run to run anyway: {', '.join(ignored)}.")
        return "\n".join(lines)

    __repr__ = __str__

    def raise_if_different(self) -> None:
        """Raise an AssertionError with the report, unless the callbacks changed nothing."""
        if not self.ok:
            raise AssertionError(str(self))


def listed(differences: Sequence[Difference]) -> Iterator[str]:
    """Under each moment what first differed there."""
    moment = ""
    for difference in differences[:SHOWN]:
        if difference.where != moment:
            moment = difference.where
            yield f"{moment}:"
        yield f"    {difference.change}"
    if len(differences) > SHOWN:
        yield f"    ... and {len(differences) - SHOWN} more"


@same_generators()
def verify_observer(
    make_trainer: Callable[[list[L.Callback]], L.Trainer],
    make_module: Callable[[], L.LightningModule],
    make_data: Callable[[], Any],
    callbacks: Callbacks,
    *,
    stages: Sequence[Stage] = ("fit",),
    ckpt_path: str | Path | None = None,
    seed: int = 0,
) -> Report:
    """Train without and with `callbacks` from the same seed, and report every difference, at every hook, bit for bit.

    Compared are weights, buffers, gradients, optimizers, schedulers, gradient scaler, random generators (torch, numpy,
    python), mode, flags, hooks and class of every submodule, metrics' states, batches, losses, torch's switches, what
    both runs logged and what the other callbacks remember. Where something differs, a second training without the
    callbacks tells whether the training repeats itself at all. Every hook reads the whole state: take few batches.

    Args:
        make_trainer: Returns a new trainer, given callbacks that it passes on: `Trainer(callbacks=[*given, ...])`.
        make_module: Returns a new module.
        make_data: Returns a data module, a loader, or a pair of loaders for training and validation.
        callbacks: One, a list, or a function that returns new ones; of objects, copies are used.
        stages: Methods of the trainer that are called, one after the other.
        ckpt_path: Checkpoint from which `fit` goes on.
        seed: Of the three global generators, before anything is made.
    """
    if torch.cuda.is_available():
        torch.cuda.init()  # else its generators would be seeded later than the state is noted

    @same_switches()
    def train(make_callbacks: Callable[[], list[L.Callback]]) -> Record:
        record = Record()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        given = record.callbacks(make_callbacks())
        record.note_generators("when the callbacks were made")
        trainer, module, data = make_trainer(given), make_module(), make_data()
        refuse_left_out(trainer, given)
        modules.append(module)
        for stage in stages:
            call(trainer, stage, module, data, ckpt_path if stage == "fit" else None)
        record.note_end(trainer)
        refuse_unseen(record, trainer)
        return record

    modules: list[L.LightningModule] = []
    plain, watched = train(list), train(lambda: copies(callbacks))
    refuse_reused(modules)
    differences = gathered(compare(plain, watched), plain.world_size)
    noise = gathered(compare(plain, train(list)), plain.world_size) if differences else ()
    unclear = {(difference.kind, difference.name) for difference in noise}
    clear = [difference for difference in differences if (difference.kind, difference.name) not in unclear]
    return Report(tuple(clear), noise, len(plain.moments))


def call(trainer: L.Trainer, stage: Stage, module: L.LightningModule, data: Any, ckpt_path: str | Path | None) -> None:
    """`trainer.fit(module, data)` and the like."""
    if stage not in get_args(Stage):
        raise ValueError(f"expected stages among {list(get_args(Stage))}, got {stage!r}.")
    loaders = data if isinstance(data, tuple) else (data,)
    options = {"verbose": False} if stage in ("validate", "test") else {"ckpt_path": ckpt_path} if ckpt_path else {}
    getattr(trainer, stage)(module, *(loaders if stage == "fit" else loaders[-1:]), **options)


def copies(callbacks: Callbacks) -> list[L.Callback]:
    """New callbacks, so that those given stay as they are."""
    given = isinstance(callbacks, (L.Callback, Sequence))
    made: Any = copy.deepcopy(callbacks) if given else callbacks()  # type: ignore[operator]
    found = [made] if isinstance(made, L.Callback) else list(made)
    for callback in found:
        if not isinstance(callback, L.Callback):
            raise TypeError(f"expected Lightning callbacks, got {type(callback).__name__}; pass e.g. [MyCallback()].")
    return found


def refuse_left_out(trainer: L.Trainer, given: list[L.Callback]) -> None:
    """Ask for the callbacks to be passed on."""
    held = {id(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    missing = [type(callback).__name__ for callback in given if id(callback) not in held]
    if missing:
        raise ValueError(
            f"expected make_trainer to pass on the callbacks that it is given, got a trainer without {missing}; "
            "write Trainer(callbacks=[*given, ...])."
        )


def refuse_reused(modules: list[L.LightningModule]) -> None:
    """Ask for a new module each time."""
    if modules[0] is modules[1]:
        raise ValueError("expected make_module to return a new module each time, got the same; build it in there.")


def refuse_unseen(record: Record, trainer: L.Trainer) -> None:
    """Say so where the training ran in other processes, which keep what they noted to themselves."""
    if len(record.moments) <= 2:
        raise RuntimeError(
            f"expected a training in this process, got {type(trainer.strategy).__name__}, whose processes return "
            "nothing; use strategy='ddp', which starts the script once per process."
        )


def compare(plain: Record, watched: Record) -> list[Difference]:
    """The first difference of each part of the state."""
    found: dict[Key, Difference] = {}

    def add(key: Key, position: int, moment: str, without: str, given: str) -> None:
        if key not in found and without != given:
            found[key] = Difference(*key, moment, without, given, position, at_end(key, plain, watched), plain.rank)

    for i, (a, b) in enumerate(zip(plain.moments, watched.moments)):
        if a.label != b.label:  # from here on the hooks are others, which have nothing to do with each other
            add(("course", "the training"), i, b.label, a.label, b.label)
            a, b = plain.end, watched.end
        if a.marks != b.marks:
            for key in {**a.marks, **b.marks}:
                if key[0] not in OPTIONAL or (key in a.marks and key in b.marks):
                    add(key, i, b.label, a.marks.get(key, "absent"), b.marks.get(key, "absent"))
        if b is watched.end:
            break
    return list(found.values())


def at_end(key: Key, plain: Record, watched: Record) -> str:
    """What is left of a difference when all is over, in words."""
    if key not in plain.end.marks or key not in watched.end.marks:
        return ""
    if plain.end.marks[key] == watched.end.marks[key]:
        return "equal again at the end"
    a, b = plain.tensors.get(key), watched.tensors.get(key)
    if a is None or b is None or not alike(a, b):
        return "still so at the end"
    bits = [tensor.contiguous().view(-1).view(torch.uint8).view(tensor.numel(), -1) for tensor in (a, b)]
    unequal = (bits[0] != bits[1]).any(1).sum()
    return f"at the end {unequal} of {a.numel()} values differ, by up to {(a.double() - b.double()).abs().max():.3g}"


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether they can be subtracted."""
    same = a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout == torch.strided
    return same and a.numel() > 0 and not a.is_complex()


def gathered(differences: list[Difference], world_size: int) -> tuple[Difference, ...]:
    """Those of all processes, the first one first, so that each process has the same report."""
    everyone = [differences]
    if world_size > 1:
        everyone *= world_size
        dist.all_gather_object(everyone, differences)
    return tuple(sorted((each for one in everyone for each in one), key=lambda each: each.position))
