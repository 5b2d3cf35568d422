"""Interleaved timing: what is compared runs in turn, so that a busy moment hits all sides; medians count."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def interleave(sides: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each side over `rounds` turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + warm_up):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if turn or not warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, seconds: Mapping[str, float], unit: float, note: str = "") -> None:
    """One line of a Markdown table; times in units of `unit` seconds."""
    cells = ", ".join(f"{name} {value / unit:.2f}" for name, value in seconds.items())
    print(f"| {what} | {cells} | {note} |", flush=True)


def peak_megabytes(code: str) -> float:
    """How much the memory of a new process grows at most while `run()`, which `code` defines, runs."""
    measure = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}\n"
        "from timing import resident, highest\nbefore = resident()\nrun()\nprint(highest() - before)"
    )
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def resident() -> float:
    """Megabytes of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def highest() -> float:
    """Most megabytes that this process ever had (Linux); what getrusage says begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
