"""A run of a sweep: any program in a process of its own, started as by `wandb agent`."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from optuna.trial import Trial, TrialState

from .command import command_line
from .file import Sweep
from .metric import FILE, Reports
from .workers import identity

PATIENCE = 30  # seconds between SIGTERM and SIGKILL


@dataclass
class SweepRun:
    """Running program; its files are in `folder`."""

    trial: Trial
    values: dict[str, Any]
    folder: Path
    sweep: Sweep
    sweep_id: str
    process: "subprocess.Popen[bytes] | None" = None
    reports: Reports = field(init=False)
    asked: float | None = None  # time of the request to stop
    began: float = field(default_factory=time.monotonic)
    error: str = ""

    @property
    def run_id(self) -> str:
        """Return the run's id for W&B."""
        return f"{self.sweep_id}-{self.trial.number}"

    def start(self) -> list[str]:
        """Write the parameters, and start the program; return its command line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reports = Reports(self.folder / "metrics.jsonl", self.sweep.metric)
        parameters = {name: {"value": value} for name, value in self.values.items()}  # what wandb.init reads
        (self.folder / "parameters.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **parameters}))
        json_file = self.folder / "parameters.json"
        json_file.write_text(json.dumps(self.values))
        words = command_line(self.sweep.command, self.sweep.program, self.values, json_file)
        (self.folder / "command.txt").write_text(" ".join(words) + "\n")
        with (self.folder / "log.txt").open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    words,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own, to be ended with all that it starts
                )
            except OSError as error:
                self.error = f"could not be started: {error}"
                return words
        (self.folder / "process.json").write_text(json.dumps(identity(self.process.pid)))
        return words

    def environment(self) -> dict[str, str]:
        """Return the variables of W&B's agent, with W&B offline and its files in the folder of the run."""
        env = {**os.environ, "WANDB_SWEEP_ID": self.sweep_id, "WANDB_RUN_ID": self.run_id}
        env.pop("WANDB_SERVICE", None)  # as the agent does; it belongs to a run of this process
        if env.get("WANDB_MODE") != "disabled":
            env["WANDB_MODE"] = "offline"
        return {
            **env,
            "WANDB_SWEEP_PARAM_PATH": str(self.folder.absolute() / "parameters.yaml"),
            "WANDB_DIR": str(self.folder.absolute()),
            FILE: str(self.folder.absolute() / "metrics.jsonl"),
            "PYTHONUNBUFFERED": "1",  # so that the log is up to date
            # The commands of this environment, also where it was not activated.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
        }

    def is_over(self) -> bool:
        """Whether the program has ended; kill it if it did not end in time after a request."""
        if self.process is None:
            return True
        if self.process.poll() is None:
            if self.asked is not None and time.monotonic() - self.asked > PATIENCE:
                self.send(signal.SIGKILL)
            return False
        if self.asked is not None:
            self.send(signal.SIGKILL)  # processes that it started and left behind
        return True

    def stop(self) -> None:
        """Request the program and its children to end, if it runs."""
        if self.asked is None and self.process is not None and self.process.poll() is None:
            self.asked = time.monotonic()
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the program's group."""
        assert self.process is not None
        with suppress(ProcessLookupError, PermissionError):  # all processes ended (the second error is that of macOS)
            os.killpg(self.process.pid, number)

    def outcome(self) -> tuple[TrialState, float | None]:
        """Return how the run ended and its last value; store the reason of a failure in `error`."""
        code = None if self.process is None else self.process.returncode
        if self.asked is not None:
            return TrialState.PRUNED, None
        if code != 0:
            self.error = self.error or f"ended with {f'signal {-code}' if code and code < 0 else f'exit code {code}'}"
            return TrialState.FAIL, None
        if not self.sweep.metric:
            return TrialState.COMPLETE, 0.0  # Optuna needs a value
        if not self.reports.values:
            self.reports.read_wandb([self.folder, Path()], self.run_id)
        values = self.reports.values
        if values and math.isfinite(values[-1]):
            return TrialState.COMPLETE, values[-1]
        got = f"{values[-1]}" if values else f"only {sorted(self.reports.names)}" if self.reports.names else "nothing"
        self.error = f"expected a finite {self.sweep.metric!r} at its end, got {got}"
        return TrialState.FAIL, None

    def log_tail(self, lines: int = 8) -> str:
        """Return the last printed lines."""
        with (self.folder / "log.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 10000))
            text = file.read().decode(errors="replace")
        return "\n".join(text.replace("\r", "\n").rstrip().splitlines()[-lines:])


def stop_all(runs: list[SweepRun], patience: float = 10) -> None:
    """End runs: request it first, kill them after `patience` seconds."""
    for run in runs:
        run.stop()
    end = time.monotonic() + patience
    try:
        while not all(run.is_over() for run in runs) and time.monotonic() < end:
            time.sleep(0.05)
    finally:  # also when Ctrl-C is pressed again
        for run in runs:
            if run.process is not None:
                run.send(signal.SIGKILL)
                run.process.wait()
