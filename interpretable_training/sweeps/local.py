"""The command sweep: run a W&B sweep file on this machine, without an account or a network."""

import math
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpretable_training.cli.configs import config_files, find_config
from interpretable_training.cli.errors import print_line
from interpretable_training.files import write_whole
from interpretable_training.mistakes import require_writable

from .file import Sweep, read_sweep
from .parameters import whole_number

POLL = 0.1  # seconds


@dataclass(frozen=True)
class SweepOptions:
    """Options of the command sweep.

    Args:
        file: The sweep.
        count: Runs of the sweep in all, those of earlier calls and other processes included.
        jobs: Runs at the same time.
        output: Folder for the study and the runs.
        seed: Seed of the values that are drawn.
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
        """Return the folder of the study."""
        return Path(self.output or Path("runs", "sweeps", Path(self.file).stem))

    @property
    def again(self) -> str:
        """Return the command that continues the sweep."""
        words = ["interpretable-training", "sweep", self.file]
        given = {"--count": self.count, "--jobs": self.jobs, "--output": self.output, "--seed": self.seed}
        default = {"--jobs": 1, "--seed": 0}
        words += [str(x) for k, v in given.items() if v is not None and v != default.get(k) for x in (k, v)]
        return shlex.join(words)


def run_sweep(options: SweepOptions) -> int:
    """Run the unfinished runs of a sweep; return the exit code of the command."""
    path = find_config(options.file, "sweeps")
    if not Path(path).is_file():
        near = [*(path.name for path in Path(options.file).parent.glob("*.yaml")), *config_files("sweeps")]
        raise ValueError(f"expected a sweep file that exists, got {options.file!r}; there are {near}.")
    sweep = read_sweep(path)
    whole_number(options.jobs, "--jobs")
    if options.count is not None:
        whole_number(options.count, "--count")
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
    """Raise where Optuna is missing or older than version 4."""
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


def show(sweep: Sweep, total: float, options: SweepOptions) -> int:
    """Print the command lines."""
    from .command import command_line
    from .study import SweepStudy, sweep_run_folder

    study = SweepStudy(sweep, options.seed)
    while trial := study.next(total):
        json_file = sweep_run_folder(options.folder, trial.number) / "parameters.json"
        print_line(shlex.join(command_line(sweep.command, sweep.program, study.values(trial), json_file)))
    return 0


class Loop:
    """Start, watch and count the runs of this process."""

    def __init__(self, sweep: Sweep, total: int, options: SweepOptions) -> None:
        from .command import command_line
        from .study import SweepStudy

        command_line(sweep.command, sweep.program, {}, Path())  # raises for mistakes before anything is written
        require_writable(options.folder)
        self.sweep, self.total, self.options = sweep, total, options
        self.study = SweepStudy(sweep, options.seed, options.folder)
        self.running: list[Any] = []

    def run(self) -> int:
        """Run all unfinished runs; return the exit code."""
        from .run import stop_all

        try:
            with interruptible():
                self.welcome()
                self.work()
        except KeyboardInterrupt:
            print_line(f"\nStopping {len(self.running)} runs. This command continues the sweep:")
            print_line(f"  {self.options.again}")
            return 130
        finally:
            stop_all(self.running)
            self.study.leave()
        return self.finish()

    def welcome(self) -> None:
        """Print the finished runs."""
        from .table import rows, runs_to_text

        again = self.study.recover(self.options.retry_failed)
        trials = self.study.trials()
        print_line(f"{self.options.file}: {self.sweep.method}, {self.total} runs, in {self.options.folder}")
        if trials:
            print_line("\n" + runs_to_text(rows(self.study), self.sweep))
            print_line(f"\nGoing on: {len(trials) - again} of {self.total} runs exist already, {again} are run again.")

    def work(self) -> None:
        """Keep as many runs at work as wanted until none is left."""
        left = True
        while left or self.running:
            while left and len(self.running) < self.options.jobs:
                left = self.start()
            time.sleep(POLL)
            self.study.beat()
            for run in [*self.running]:
                over = run.is_over()  # before the reports are read: they are complete then
                before, new = len(run.reports.values), run.reports.read()
                if self.study.report(run.trial, new, before):
                    run.stop()
                if over:
                    self.running.remove(run)
                    self.end(run)

    def start(self) -> bool:
        """Start the next run, if there is one."""
        from .run import SweepRun
        from .study import sweep_run_folder

        if (trial := self.study.next(self.total)) is None:
            return False
        values = self.study.values(trial)
        folder = sweep_run_folder(self.options.folder, trial.number)
        run = SweepRun(trial, values, folder, self.sweep, self.study.sweep_id)
        self.running.append(run)
        run.start()
        print_line(f"run {trial.number} started    {self.settings(run)}    {folder / 'log.txt'}")
        return True

    def end(self, run: Any) -> None:
        """Write and print how a run ended."""
        from .table import STATES, short_value

        state, value = run.outcome()
        recorded = self.study.finish(run.trial.number, state, value)
        word = STATES[state] if recorded else "taken over by another process, which had no sign of life from this one"
        reached = f"{self.sweep.metric} {short_value(run.reports.values[-1])}" if run.reports.values else ""
        done = sum(trial.state.is_finished() for trial in self.study.trials())
        seconds = time.monotonic() - run.began
        print_line(f"run {run.trial.number} {word}    {reached}    {seconds:.0f} s    [{done} of {self.total}]")
        if run.error:
            print_line(f"  {run.error}; the end of {run.folder / 'log.txt'}:")
            print_line("".join(f"    {line}\n" for line in run.log_tail().splitlines()))

    def settings(self, run: Any) -> str:
        """Return the parameters that vary, as text."""
        from .table import columns, short_value

        shown = self.study.flat(run.trial)
        return " ".join(f"{name}={short_value(shown[name])}" for name in columns(self.sweep))

    def finish(self) -> int:
        """Print and write the results; return the exit code: 1 if every run failed."""
        from .table import draw_runs, rows, runs_to_csv, runs_to_text

        results, folder = rows(self.study), self.options.folder
        print_line("\n" + runs_to_text(results, self.sweep))
        write_whole(folder / "runs.csv", runs_to_csv(results, self.sweep))
        if draw_runs(results, self.sweep, folder / "sweep.png"):
            print_line(f"picture: {folder / 'sweep.png'}")
        states = [row.state for row in results]
        if "unfinished" in states or "queued" in states:
            print_line("\nOther processes still work on this sweep; run the same command again to see their results.")
        if failed := states.count("failed"):
            print_line(f"\n{failed} of {len(results)} runs failed; --retry-failed runs them again.")
        return int(bool(results) and failed == len(results))


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat signals that end this process (Slurm, a closed terminal) as Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is not signal.SIG_IGN]  # unlike those of nohup
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
