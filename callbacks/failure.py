"""What happened instead of a look."""

from typing import Any


class Failure:
    """An exception on its way from one process to the others."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def __getstate__(self) -> dict[str, Any]:  # the exception itself may not be one that can be sent
        return {"error": RuntimeError(self.reason), "reason": self.reason}
