"""Check whether watching callbacks change a training.

The same training runs without and with the callbacks. Two more callbacks record the whole state before and after those
under test at each hook, so that the report names the hook with the first difference. Not one bit may differ.
"""

import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.files import files_below

from .observer_report import OPTIONAL, Difference, ObserverReport
from .snapshot_callbacks import StateRecord
from .state_snapshot import Key, same_switches

Callbacks = L.Callback | Sequence[L.Callback] | Callable[[], L.Callback | Sequence[L.Callback]]
Stage = Literal["fit", "validate", "test", "predict"]


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
) -> ObserverReport:
    """Train without and with `callbacks` from the same seed, and report every difference, at every hook, bit for bit.

    The comparison covers weights, buffers, gradients, optimizers, schedulers, gradient scaler, random generators (of
    torch, numpy and python), mode, flags, hooks and class of every submodule, states of metrics, batches, losses,
    torch's flags, values that both runs logged, and states of the other callbacks. If parts differ, a second training
    without the callbacks shows whether the training is reproducible. Every hook reads the whole state, so use few
    batches.

    >>> from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
    >>> def make_trainer(given): return L.Trainer(callbacks=given, max_steps=2, limit_val_batches=1, barebones=True)
    >>> verify_observer(make_trainer, BoringModel, BoringDataModule, L.Callback())
    The callbacks changed nothing: the state was compared ... times.

    Args:
        make_trainer: Returns a new trainer with the given callbacks: `Trainer(callbacks=[*given, ...])`.
        make_module: Returns a new module.
        make_data: Returns a data module, a loader, or a pair of loaders for training and validation.
        callbacks: A callback, a list, or a function that returns new callbacks; objects are copied.
        stages: Methods of the trainer to call, in order.
        ckpt_path: Checkpoint from which `fit` resumes.
        seed: Seed of the three global generators, set before each training.
    """
    if torch.cuda.is_available():
        torch.cuda.init()  # otherwise its generators would be seeded after the first record

    @same_switches()
    def train(make_callbacks: Callable[[], list[L.Callback]]) -> StateRecord:
        record = StateRecord()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        given = record.callbacks(make_callbacks())
        record.add_generators("when the callbacks were made")
        trainer, module, data = make_trainer(given), make_module(), make_data()
        _check_callbacks(trainer, given)
        modules.append(module)
        with tempfile.TemporaryDirectory() as folder, files_below(folder):
            for stage in stages:
                _run_stage(trainer, stage, module, data, ckpt_path if stage == "fit" else None)
        record.add_end(trainer)
        _check_process(record, trainer)
        return record

    modules: list[L.LightningModule] = []
    plain, watched = train(list), train(lambda: _copies(callbacks))
    _check_modules(modules)
    differences = _from_all_ranks(_first_differences(plain, watched), plain.world_size)
    noise = _from_all_ranks(_first_differences(plain, train(list)), plain.world_size) if differences else ()
    unclear = {(difference.kind, difference.name) for difference in noise}
    clear = [difference for difference in differences if (difference.kind, difference.name) not in unclear]
    return ObserverReport(tuple(clear), noise, len(plain.moments))


def _run_stage(
    trainer: L.Trainer, stage: Stage, module: L.LightningModule, data: Any, ckpt_path: str | Path | None
) -> None:
    """Call `trainer.fit(module, data)` or another method of the trainer."""
    if stage not in get_args(Stage):
        raise ValueError(f"expected stages among {list(get_args(Stage))}, got {stage!r}.")
    loaders = data if isinstance(data, tuple) else (data,)
    options = {"verbose": False} if stage in ("validate", "test") else {"ckpt_path": ckpt_path} if ckpt_path else {}
    getattr(trainer, stage)(module, *(loaders if stage == "fit" else loaders[-1:]), **options)


def _copies(callbacks: Callbacks) -> list[L.Callback]:
    """Return new callbacks, so that the given ones do not change."""
    given = isinstance(callbacks, (L.Callback, Sequence))
    made: Any = copy.deepcopy(callbacks) if given else callbacks()  # type: ignore[operator]
    new = [made] if isinstance(made, L.Callback) else list(made)
    for callback in new:
        if not isinstance(callback, L.Callback):
            raise TypeError(f"expected Lightning callbacks, got {type(callback).__name__}; pass e.g. [MyCallback()].")
    return new


def _check_callbacks(trainer: L.Trainer, given: list[L.Callback]) -> None:
    """Raise ValueError if the trainer lacks one of the given callbacks."""
    held = {id(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    missing = [type(callback).__name__ for callback in given if id(callback) not in held]
    if missing:
        raise ValueError(
            f"expected make_trainer to pass its callbacks on to the trainer, got a trainer without {missing}; "
            "write Trainer(callbacks=[*given, ...])."
        )


def _check_modules(modules: list[L.LightningModule]) -> None:
    """Raise ValueError if both trainings used the same module."""
    if modules[0] is modules[1]:
        raise ValueError(
            "expected make_module to return a new module each time, got the same one; create it inside make_module."
        )


def _check_process(record: StateRecord, trainer: L.Trainer) -> None:
    """Raise RuntimeError if the training ran in other processes, whose records are lost."""
    if len(record.moments) <= 2:
        raise RuntimeError(
            f"expected a training in this process, got {type(trainer.strategy).__name__}, whose processes return "
            "nothing; use strategy='ddp', which starts the script once per process."
        )


def _first_differences(plain: StateRecord, watched: StateRecord) -> list[Difference]:
    """Return the first difference of each part of the state."""
    differences: dict[Key, Difference] = {}

    def add(key: Key, position: int, moment: str, without: str, given: str) -> None:
        if key not in differences and without != given:
            remaining = _at_end(key, plain, watched)
            differences[key] = Difference(*key, moment, without, given, position, remaining, plain.rank)

    for i, (a, b) in enumerate(zip(plain.moments, watched.moments)):
        if a.label != b.label:  # the following hooks differ and cannot be compared
            add(("course", "the training"), i, b.label, a.label, b.label)
            a, b = plain.end, watched.end
        if a.digests != b.digests:
            for key in {**a.digests, **b.digests}:
                if key[0] not in OPTIONAL or (key in a.digests and key in b.digests):
                    add(key, i, b.label, a.digests.get(key, "absent"), b.digests.get(key, "absent"))
        if b is watched.end:
            break
    return list(differences.values())


def _at_end(key: Key, plain: StateRecord, watched: StateRecord) -> str:
    """Describe the difference that remains after the training."""
    if key not in plain.end.digests or key not in watched.end.digests:
        return ""
    if plain.end.digests[key] == watched.end.digests[key]:
        return "equal again at the end"
    a, b = plain.tensors.get(key), watched.tensors.get(key)
    if a is None or b is None or not _subtractable(a, b):
        return "still so at the end"
    bits = [tensor.contiguous().view(-1).view(torch.uint8).view(tensor.numel(), -1) for tensor in (a, b)]
    unequal = (bits[0] != bits[1]).any(1).sum()
    return f"at the end {unequal} of {a.numel()} values differ, by up to {(a.double() - b.double()).abs().max():.3g}"


def _subtractable(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors can be subtracted."""
    same = a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout == torch.strided
    return same and a.numel() > 0 and not a.is_complex()


def _from_all_ranks(differences: list[Difference], world_size: int) -> tuple[Difference, ...]:
    """Return the differences of all processes in order, so that each process has the same report."""
    everyone = [differences]
    if world_size > 1:
        everyone *= world_size
        dist.all_gather_object(everyone, differences)
    return tuple(sorted((item for part in everyone for item in part), key=lambda item: item.position))
