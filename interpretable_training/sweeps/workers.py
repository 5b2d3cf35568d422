"""Which processes still work on a sweep, so that the runs of one that was killed can be told from those under way."""

import json
import os
import platform
import signal
import time
import uuid
from pathlib import Path

STALE = 300  # seconds without a sign of life, after which a process of another machine counts as gone
BEAT = 10
PROC = Path("/proc")


def host() -> str:
    """This machine; processes of containers that share its name do not see each other."""
    space = PROC / "self" / "ns" / "pid"
    return f"{platform.node()}/{space.stat().st_ino}" if space.exists() else platform.node()


def born(pid: int) -> str | None:
    """When a process began, in the system's own count; None where it is gone, "" where the system does not tell."""
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
    """What tells a process from all others."""
    return {"host": host(), "pid": pid, "born": born(pid)}


class Worker:
    """This process, among those that share a sweep.

    Args:
        folder: Each process has a file in it, which it touches as long as it lives.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex[:8]
        self.path = folder / self.name
        self.path.write_text(json.dumps(identity(os.getpid())))
        self.last = time.monotonic()

    def beat(self) -> None:
        """Give a sign of life, if it is time."""
        if time.monotonic() - self.last > BEAT:
            self.path.touch()
            self.last = time.monotonic()

    def leave(self) -> None:
        """What this process did not finish may be run by others."""
        self.path.unlink(missing_ok=True)

    def is_alive(self, name: str | None) -> bool:
        """Whether the process of this name still works; one that was killed before it gave its name does not."""
        try:
            path = self.path.with_name(name or "")
            other = json.loads(path.read_text())
        except (OSError, ValueError):  # left in peace, or never came to write it
            return False
        if other["host"] == host() and (now := born(other["pid"])) != "":
            return now is not None and now == other["born"]
        self.path.touch()  # by the clock of the file system, which all share
        return self.path.stat().st_mtime - path.stat().st_mtime < STALE


def end_orphan(path: Path, patience: float = 10) -> bool:
    """End a run that outlived the process that watched it, if it is one of this machine; return whether it was.

    Args:
        path: The file in which its identity was written.
        patience: Seconds before it is killed.
    """
    try:
        process = json.loads(path.read_text())
    except (OSError, ValueError):
        return False

    def lives() -> bool:
        return bool(process["born"]) and process["host"] == host() and born(process["pid"]) == process["born"]

    if not lives():
        return False
    os.killpg(process["pid"], signal.SIGTERM)
    end = time.monotonic() + patience
    while lives() and time.monotonic() < end:
        time.sleep(0.05)
    if lives():
        os.killpg(process["pid"], signal.SIGKILL)
    return True
