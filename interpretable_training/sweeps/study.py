"""A sweep as a study of Optuna in a file that processes of several machines may share.

A lock guards the choice of the next run. A run whose process was killed goes back to the queue with the same
parameters; the study keeps the first attempt as failed, and does not count it.
"""

import json
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ._compat import LINE_START, grid_point, is_end_of_grid
from .file import Sweep
from .parameters import Choice, Parameter
from .workers import Worker, end_orphan

AGAIN = "again"  # of a trial that repeats another: the number of that one
JOURNAL = "study.journal"
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class SweepStudy:
    """Runs of a sweep.

    Args:
        sweep: The sweep file.
        seed: Seed of the values that are drawn.
        folder: Folder of the study; without one it is kept in memory.
    """

    def __init__(self, sweep: Sweep, seed: int, folder: Path | None = None) -> None:
        self.sweep, self.seed, self.folder = sweep, seed, folder
        self.worker: Worker | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the command prints its own messages
        with self.lock():
            with self.readable():
                self.study = optuna.create_study(
                    storage=InMemoryStorage() if folder is None else open_storage(folder / JOURNAL),
                    study_name="sweep",
                    direction="maximize" if sweep.maximize else "minimize",
                    pruner=pruner(sweep),
                    load_if_exists=True,
                )
            self.check()
            with self.readable():
                for trial in self.trials():
                    self.flat(trial)
        if folder is not None:
            self.worker = Worker(folder / "workers")

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Raise an error that names the file where Optuna cannot read it."""
        try:
            yield
        except Exception as error:
            if self.folder is None:
                raise
            path = self.folder / JOURNAL
            raise ValueError(
                f"expected the study of a sweep in {str(path)!r}, as Optuna writes it, got a file that is damaged or "
                f"another's ({type(error).__name__}: {' '.join(str(error).split())[:200]}); put a copy of it in its "
                f"place, move it away to begin the sweep anew, or choose another folder, --output FOLDER."
            ) from error

    def check(self) -> None:
        """Raise where the folder holds another sweep."""
        mine = {"definition": self.sweep.definition, "seed": self.seed}
        theirs = self.study.user_attrs
        for key, value in mine.items():
            if theirs.get(key, value) != value:
                raise ValueError(
                    f"expected the {key} of the sweep in {str(self.folder)!r}, {theirs[key]}, got {value}; choose "
                    "another folder for another sweep, --output FOLDER."
                )
            if key not in theirs:
                self.study.set_user_attr(key, value)
        if "sweep_id" not in theirs:
            self.study.set_user_attr("sweep_id", uuid.uuid4().hex[:8])
        self.sweep_id: str = self.study.user_attrs["sweep_id"]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of all processes; one whose owner was killed is broken after half a minute."""
        if self.folder is None:
            yield
            return
        lock = JournalFileOpenLock(str(self.folder / "next"))
        lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # broken by another process
                lock.release()

    def beat(self) -> None:
        """Show other processes that this one is alive."""
        if self.worker is not None:
            self.worker.beat()

    def leave(self) -> None:
        """Leave unfinished runs to other processes."""
        if self.worker is not None:
            self.worker.leave()

    def trials(self) -> list[FrozenTrial]:
        """Return all runs except attempts that were repeated."""
        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [trial for trial in trials if trial.number not in repeated]

    def recover(self, failed: bool = False) -> int:
        """Queue the runs of processes that ended, and failed ones if `failed`; return their number."""
        with self.lock():
            trials = self.study.get_trials(deepcopy=False)
            lost = [t for t in trials if t.state == TrialState.RUNNING and not self.is_watched(t)]
            wanted = [t for t in self.trials() if t.state == TrialState.FAIL] if failed else []
            queued = {trial.user_attrs.get(AGAIN) for trial in trials}
            for trial in [*lost, *wanted]:
                if trial.number not in queued:  # else the process that queued it was killed before the next line
                    self.study.add_trial(copy(trial))
                if trial.state == TrialState.RUNNING:
                    assert self.folder is not None
                    end_orphan(sweep_run_folder(self.folder, trial.number) / "process.json")
                    self.finish(trial.number, TrialState.FAIL)
            return len(lost) + len(wanted)

    def is_watched(self, trial: FrozenTrial) -> bool:
        """Whether the process that started a run is alive."""
        return self.worker is not None and self.worker.is_alive(trial.user_attrs.get("worker"))

    def next(self, total: float) -> Trial | None:
        """Return the next run; None if `total` runs exist."""
        with self.lock():
            trials = self.trials()
            if not any(trial.state == TrialState.WAITING for trial in trials) and len(trials) >= total:
                return None
            # Drawn from seed and number: a sweep that went on is the same as one that was never stopped, and
            # processes that share it draw different values.
            self.study.sampler = sampler(self.sweep, self.seed, len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask({p.name: optuna_distribution(p) for p in self.sweep.parameters})
            if self.worker is not None:
                trial.set_user_attr("worker", self.worker.name)
            return trial

    def flat(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """Return the drawn parameters of a run by their dotted names."""
        drawn = trial.params
        return {p.name: decode(p, drawn[p.name]) for p in self.sweep.parameters if p.name in drawn}

    def values(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """Return the parameters for a run's program: parameter -> value, nested ones in mappings."""
        flat, values = self.flat(trial), dict[str, Any]()
        for parameter in self.sweep.parameters:
            parent = values
            for name in parameter.path[:-1]:
                parent = parent.setdefault(name, {})
            parent[parameter.path[-1]] = flat[parameter.name]
        return values

    def report(self, trial: Trial, values: list[float], before: int) -> bool:
        """Record the values that a run wrote; return whether to stop it.

        Args:
            trial: The run.
            values: New values of the metric.
            before: Number of earlier values.
        """
        halving = self.sweep.halving
        try:
            for step, value in enumerate(values, before + 1):
                trial.report(value, step)
                if halving is not None and step <= halving.last and trial.should_prune():
                    return True
        except UpdateFinishedTrialError:  # another process took it over, because this one gave no sign of life
            return True
        return False

    def finish(self, number: int, state: TrialState, value: float | None = None) -> bool:
        """Record how a run ended; return False if another process took it over meanwhile."""
        try:
            self.study.tell(number, value, state)
        except RuntimeError as error:
            if isinstance(error, UpdateFinishedTrialError):
                return False
            if not is_end_of_grid(error):
                raise
        except ValueError:  # "Cannot tell a FAIL trial"
            return False
        return True


def open_storage(journal: Path) -> BaseStorage:
    """Return the storage in a file, which is created if it does not exist."""
    if journal.exists() and not journal.is_file():
        raise OSError("not a file")
    lock = JournalFileOpenLock(str(journal))
    mend(journal, lock)
    for number, line in enumerate(journal.read_bytes().splitlines() if journal.exists() else (), 1):
        if not line.startswith(LINE_START):  # before Optuna appends to it
            raise ValueError(f"line {number} is not Optuna's")
        json.loads(line)
    return JournalStorage(JournalFileBackend(str(journal), lock))


def mend(journal: Path, lock: JournalFileOpenLock) -> None:
    """Cut off half a line at the end, which a process leaves that is killed while it writes."""
    lock.acquire()
    try:
        content = journal.read_bytes() if journal.exists() else b""
        start = content.rfind(b"\n") + 1
        if content[start : start + len(LINE_START)] == LINE_START[: len(content) - start] and start < len(content):
            with journal.open("r+b") as file:
                file.truncate(start)
    finally:
        lock.release()


def sweep_run_folder(folder: Path, number: int) -> Path:
    """Return the folder of a run."""
    return folder / f"run_{number:04d}"


def copy(trial: FrozenTrial) -> FrozenTrial:
    """Return a waiting trial with the same parameters and the same point on the grid."""
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={AGAIN: trial.number},
        system_attrs=grid_point(trial.system_attrs),
    )


def sampler(sweep: Sweep, seed: int, number: int) -> BaseSampler:
    """Return the sampler of a run's values."""
    if sweep.method == "grid":
        return GridSampler({p.name: choices(p) for p in sweep.parameters}, seed=seed)
    drawn = zlib.crc32(f"{seed}/{number}".encode())
    return TPESampler(seed=drawn) if sweep.method == "bayes" else RandomSampler(seed=drawn)


def pruner(sweep: Sweep) -> HyperbandPruner | None:
    """Return the pruner: W&B's hyperband is Hyperband with a single bracket, as equal resources give it."""
    if sweep.halving is None:
        return None
    first = sweep.halving.first
    return HyperbandPruner(min_resource=first, max_resource=first, reduction_factor=sweep.halving.eta)


def choices(parameter: Parameter) -> list[str | int | float | bool | None]:
    """Return the values as Optuna stores them: lists and mappings as text."""
    assert isinstance(parameter.domain, Choice)
    return [json.dumps(value) if isinstance(value, (list, dict)) else value for value in parameter.domain.values]


def optuna_distribution(parameter: Parameter) -> BaseDistribution:
    """Return the distribution of a parameter for Optuna."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        return CategoricalDistribution(choices(parameter))
    if domain.q is None or domain.log:
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    if all(type(number) is int for number in (domain.low, domain.high, domain.q)):
        return IntDistribution(int(domain.low), int(domain.high), step=int(domain.q))
    return FloatDistribution(domain.low, domain.high, step=domain.q)


def decode(parameter: Parameter, value: Any) -> Any:
    """Return the value of a parameter for a value of Optuna."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        return domain.values[choices(parameter).index(value)]
    if domain.q is not None and domain.log:  # which Optuna cannot round by itself
        return round(round(value / domain.q) * domain.q, 12)
    return value
