"""The command sweep: the runs of a W&B sweep file on this machine, without an account or a network."""

import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpretable_training.cli.errors import require_writable
from interpretable_training.files import write_whole

from .file import Sweep, read_sweep, whole

POLL = 0.1  # seconds


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Args:
        file: The sweep.
        count: Runs of the sweep in all, those of earlier calls and other processes included.
        jobs: Runs at the same time.
        output: Folder for the study and the runs.
        seed: Of the values that are drawn.
        retry_failed: Whether failed runs are run again.
        dry_run: Whether the commands are only shown.
    """

    file: str
    count: int | None = None
    jobs: int = 1
    output: str | None = None
    seed: int = 0
    retry_failed: bool = False
    dry_run: bool = False

    @property
    def folder(self) -> Path:
        """Where the study is."""
        return Path(self.output or Path("runs", "sweeps", Path(self.file).stem))

    @property
    def again(self) -> str:
        """The command that goes on."""
        words = ["interpretable-training", "sweep", self.file]
        given = {"--count": self.count, "--jobs": self.jobs, "--output": self.output, "--seed": self.seed}
        default = {"--jobs": 1, "--seed": 0}
        words += [str(x) for k, v in given.items() if v is not None and v != default.get(k) for x in (k, v)]
        return shlex.join(words)


def run_sweep(options: Options) -> int:
    """Run what is left of a sweep; return the exit code of the command."""
    if not Path(options.file).is_file():
        near = [path.name for path in Path(options.file).parent.glob("*.yaml")]
        raise ValueError(f"expected a sweep file that exists, got {options.file!r}; beside it are {near}.")
    sweep = read_sweep(options.file)
    whole(options.jobs, "--jobs")
    if options.count is not None:
        whole(options.count, "--count")
    total = min(sweep.points, *(math.inf if n is None else n for n in (options.count, sweep.run_cap)))
    if math.isinf(total):
        raise ValueError(
            f"expected a number of runs for the method {sweep.method!r}, which never ends, got none; pass --count 20, "
            "or add run_cap to the file."
        )
    require_optuna()
    if options.dry_run:
        return show(sweep, total, options)
    return Loop(sweep, int(total), options).run()


def require_optuna() -> None:
    """Raise where Optuna is missing, or older than what the study is written with."""
    version = "none"
    try:
        import optuna

        version = getattr(optuna, "__version__", "one without a version")
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"expected the package optuna, 4 or newer, for sweeps, got {version}; pip install "
            "'interpretable-training[sweep]'."
        ) from error


def show(sweep: Sweep, total: float, options: Options) -> int:
    """Print the command lines."""
    from .command import command_line
    from .study import Study, run_folder

    study = Study(sweep, options.seed)
    while trial := study.next(total):
        json_file = run_folder(options.folder, trial.number) / "parameters.json"
        say(shlex.join(command_line(sweep.command, sweep.program, study.values(trial), json_file)))
    return 0


class Loop:
    """Starts, watches and counts the runs of this process."""

    def __init__(self, sweep: Sweep, total: int, options: Options) -> None:
        from .command import command_line
        from .study import Study

        command_line(sweep.command, sweep.program, {}, Path())  # a mistake in it is found before anything is written
        require_writable(options.folder)
        self.sweep, self.total, self.options = sweep, total, options
        self.study = Study(sweep, options.seed, options.folder)
        self.running: list[Any] = []

    def run(self) -> int:
        """All runs that are left."""
        from .run import stop_all

        try:
            with interruptible():
                self.welcome()
                self.work()
        except KeyboardInterrupt:
            say(f"\nStopping {len(self.running)} runs. They are not lost, this goes on where it stopped:")
            say(f"  {self.options.again}")
            return 130
        finally:
            stop_all(self.running)
            self.study.leave()
        return self.finish()

    def welcome(self) -> None:
        """Say what there is already."""
        from .table import rows, to_text

        again = self.study.recover(self.options.retry_failed)
        trials = self.study.trials()
        say(f"{self.options.file}: {self.sweep.method}, {self.total} runs, in {self.options.folder}")
        if trials:
            say("\n" + to_text(rows(self.study), self.sweep))
            say(f"\nGoing on: {len(trials) - again} of {self.total} runs were there, {again} are run once more.")

    def work(self) -> None:
        """Keep as many runs at work as wanted until none is left."""
        left = True
        while left or self.running:
            while left and len(self.running) < self.options.jobs:
                left = self.start()
            time.sleep(POLL)
            self.study.beat()
            for run in [*self.running]:
                over = run.is_over()  # asked first: what it wrote until then is read after it
                before, new = len(run.reports.values), run.reports.read()
                if self.study.report(run.trial, new, before):
                    run.stop()
                if over:
                    self.running.remove(run)
                    self.end(run)

    def start(self) -> bool:
        """Start the next run, if there is one."""
        from .run import Run
        from .study import run_folder

        if (trial := self.study.next(self.total)) is None:
            return False
        values = self.study.values(trial)
        folder = run_folder(self.options.folder, trial.number)
        run = Run(trial, values, folder, self.sweep, self.study.sweep_id)
        self.running.append(run)
        run.start()
        say(f"run {trial.number} started    {self.settings(run)}    {folder / 'log.txt'}")
        return True

    def end(self, run: Any) -> None:
        """Write down how a run ended, and say it."""
        from .table import STATES, short

        state, value = run.outcome()
        kept = self.study.tell(run.trial.number, state, value)
        word = STATES[state] if kept else "taken over by another process, which had no sign of life from this one"
        reached = f"{self.sweep.metric} {short(run.reports.values[-1])}" if run.reports.values else ""
        done = sum(trial.state.is_finished() for trial in self.study.trials())
        seconds = time.monotonic() - run.began
        say(f"run {run.trial.number} {word}    {reached}    {seconds:.0f} s    [{done} of {self.total}]")
        if run.error:
            say(f"  {run.error}; the end of {run.folder / 'log.txt'}:")
            say("".join(f"    {line}\n" for line in run.log_tail().splitlines()))

    def settings(self, run: Any) -> str:
        """The parameters that vary."""
        from .table import columns, short

        shown = self.study.flat(run.trial)
        return " ".join(f"{name}={short(shown[name])}" for name in columns(self.sweep))

    def finish(self) -> int:
        """The results of all, and the exit code: 1 if every run failed."""
        from .table import draw, rows, to_csv, to_text

        found, folder = rows(self.study), self.options.folder
        say("\n" + to_text(found, self.sweep))
        write_whole(folder / "runs.csv", to_csv(found, self.sweep))
        if draw(found, self.sweep, folder / "sweep.png"):
            say(f"picture: {folder / 'sweep.png'}")
        states = [row.state for row in found]
        if "unfinished" in states or "queued" in states:
            say("\nOther processes still work on this sweep; the same command shows what they found.")
        if failed := states.count("failed"):
            say(f"\n{failed} of {len(found)} runs failed; --retry-failed runs them again.")
        return int(bool(found) and failed == len(found))


@contextmanager
def interruptible() -> Iterator[None]:
    """What ends this process (Slurm, a closed terminal) is treated as Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in numbers if before[number] is not signal.SIG_IGN]  # unlike those of nohup
    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def say(text: str) -> None:
    """Print a line now; the sweep is a command."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
