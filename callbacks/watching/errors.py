"""What happened instead of a look."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import lightning as L

from interpretable_training.attribution.core.state import StateWarning, listen
from interpretable_training.callbacks.watching.schedule import this_moment

if TYPE_CHECKING:
    from interpretable_training.callbacks.watching.base import Watcher


class Failure:
    """An exception on its way from one process to the others; of a single method, if it is named."""

    def __init__(self, error: Exception, method: str = "") -> None:
        self.error = error
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.reason = f"{method}: {told}" if method else told

    def __str__(self) -> str:
        return self.reason

    def forget(self) -> None:
        """Let go of what the traceback holds, which may be tensors that fill the memory."""
        self.error = RuntimeError(self.reason)

    def __getstate__(self) -> dict[str, Any]:  # the exception itself may not be one that can be sent
        return {"error": RuntimeError(self.reason), "reason": self.reason}


def attempt(work: Callable[[], Any], changed: Callable[[str], None] | None = None) -> Any:
    """The result of `work`, or its failure; `changed` is called with state that could not be put back."""
    try:
        with listen(changed) if changed else nullcontext():
            return work()
    except Exception as error:
        return Failure(error)


def attempt_for(watcher: "Watcher", trainer: L.Trainer, work: Callable[[], Any]) -> Any:
    """`attempt`; state that could not be put back is a failure with on_error="raise", and is logged with "warn"."""
    changes: list[str] = []
    result = attempt(work, changes.append)
    failures = [Failure(StateWarning(text)) for text in dict.fromkeys(changes)]
    if failures and watcher.on_error == "raise":
        return result if isinstance(result, Failure) else failures[0]
    watcher.failed(trainer, failures, this_moment(trainer))
    return result
