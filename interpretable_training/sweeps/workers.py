"""Processes that work on a sweep: which of them are alive, and which left unfinished runs."""

import json
import os
import platform
import signal
import time
import uuid
from pathlib import Path

STALE = 300  # seconds after which a process of another machine that does not touch its file counts as ended
BEAT = 10
PROC = Path("/proc")


def host() -> str:
    """Return a name of this machine; containers with the same name have their own."""
    space = PROC / "self" / "ns" / "pid"
    return f"{platform.node()}/{space.stat().st_ino}" if space.exists() else platform.node()


def born(pid: int) -> str | None:
    """Return when a process began, in the system's count; None if it ended, "" if the system has no such count."""
    if not (PROC / "self").exists():  # macOS
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # of another user
            pass
        return ""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # state; starttime


def identity(pid: int) -> dict[str, str | int | None]:
    """Return values that no other process has."""
    return {"host": host(), "pid": pid, "born": born(pid)}


class Worker:
    """This process, one of those that share a sweep.

    Args:
        folder: Folder in which each process touches a file of its own while it is alive.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex[:8]
        self.path = folder / self.name
        self.path.write_text(json.dumps(identity(os.getpid())))
        self.last = time.monotonic()

    def beat(self) -> None:
        """Touch the file, if the last time was long ago."""
        if time.monotonic() - self.last > BEAT:
            self.path.touch()
            self.last = time.monotonic()

    def leave(self) -> None:
        """Leave unfinished runs to other processes."""
        self.path.unlink(missing_ok=True)

    def is_alive(self, name: str | None) -> bool:
        """Whether the process of this name is alive; False without a name."""
        try:
            path = self.path.with_name(name or "")
            other = json.loads(path.read_text())
        except (OSError, ValueError):  # the process left, or was killed before it wrote the file
            return False
        if other["host"] == host() and (now := born(other["pid"])) != "":
            return now is not None and now == other["born"]
        self.path.touch()  # by the clock of the file system, which all share
        return self.path.stat().st_mtime - path.stat().st_mtime < STALE


def end_orphan(path: Path, patience: float = 10) -> bool:
    """End a run of this machine that outlived the process that watched it; return whether it did.

    Args:
        path: File with the identity of the run's process.
        patience: Seconds before the run is killed.
    """
    try:
        process = json.loads(path.read_text())
    except (OSError, ValueError):
        return False

    def is_alive() -> bool:
        return bool(process["born"]) and process["host"] == host() and born(process["pid"]) == process["born"]

    if not is_alive():
        return False
    os.killpg(process["pid"], signal.SIGTERM)
    end = time.monotonic() + patience
    while is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    if is_alive():
        os.killpg(process["pid"], signal.SIGKILL)
    return True
