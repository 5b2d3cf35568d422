"""What happened instead of a look."""

from collections.abc import Callable
from typing import Any


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


def attempt(work: Callable[[], Any]) -> Any:
    """The result of `work`, or its failure."""
    try:
        return work()
    except Exception as error:
        return Failure(error)
