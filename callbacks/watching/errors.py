"""Failures of explanation steps: how they are counted, logged, and kept from ending the training."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from interpretable_training.attribution.core.state import StateWarning, listen
from interpretable_training.callbacks.watching.options import OnError


class Failure:
    """Exception that one process sends to the others; of a single method, if it is named."""

    def __init__(self, error: Exception, method: str = "") -> None:
        self.error = error
        self.cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.reason = f"{method}: {self.cause}" if method else self.cause

    def __str__(self) -> str:
        return self.reason

    def release(self) -> None:
        """Drop the traceback, whose frames may hold tensors that fill the memory."""
        self.error = RuntimeError(self.reason)

    def __getstate__(self) -> dict[str, Any]:  # the exception itself may not be one that can be sent
        return {**vars(self), "error": RuntimeError(self.reason)}


class ErrorPolicy:
    """Count the failures of a callback by their reason; warn of each cause once in a run, or raise.

    Args:
        owner: name of the callback, in warnings and in the journal.
        on_error: "warn" or "raise".
    """

    def __init__(self, owner: str, on_error: OnError) -> None:
        self.owner, self.on_error = owner, on_error
        self.reasons: Counter[str] = Counter()

    def attempt(self, work: Callable[[], Any], write: Callable[..., None], warned: set[str]) -> Any:
        """Return the result of `work` or its Failure; state that could not be put back counts as a failure too."""
        changes: list[str] = []
        try:
            with listen(changes.append):
                result = work()
        except Exception as error:
            result = Failure(error)
        failures = [Failure(StateWarning(text)) for text in dict.fromkeys(changes)]
        if failures and self.on_error == "raise":
            return result if isinstance(result, Failure) else failures[0]
        self.handle(failures, write, warned)
        return result

    def handle(self, failures: Sequence[Failure], write: Callable[..., None], warned: set[str]) -> None:
        """Count failures, pass each to `write`, and raise the first with on_error="raise".

        Args:
            failures: the failures.
            write: writes a line of the journal.
            warned: causes of which a callback of this run has warned; those of these failures are added.
        """
        for failure in failures:
            self.reasons[failure.reason] += 1
            first = self.reasons[failure.reason] == 1
            if first and failure.cause not in warned and self.on_error == "warn":
                warned.add(failure.cause)
                state = isinstance(failure.error, StateWarning)  # the maps exist, but the training has changed
                text = f"{self.owner} failed, the training goes on: {failure.reason}"
                rank_zero_warn(f"{self.owner}: {failure.reason}" if state else text)
            write("failure", callback=self.owner, reason=failure.reason, first=first)
        if failures and self.on_error == "raise":
            raise failures[0].error
        for failure in failures:
            failure.release()
