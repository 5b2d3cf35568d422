"""Send to loggers in a thread, so that a slow or stopped logger does not hold up the training."""

import threading
import weakref
from collections import deque
from collections.abc import Callable

import lightning as L

PATIENCE = 10.0  # seconds without progress, after which nothing is waited for
MOST = 16  # deliveries that may wait, each with the pictures of an explanation step


class BackgroundSender:
    """Make deliveries in order, in a thread that ends when nothing waits.

    A delivery that finds the queue full waits for room. After `patience` seconds in which no delivery was completed,
    new ones are dropped at once, until one is completed again. Each call of `put` and `drain` raises one error of a
    delivery, until there are no more `errors`.

    >>> sent, sender = [], BackgroundSender()
    >>> sender.put(lambda: sent.append("picture")); sender.drain(); sent
    ['picture']
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.waiting: deque[Callable[[], None]] = deque()
        self.changed = threading.Condition()
        self.completed = 0
        self.stopped = False  # whether the patience is exhausted
        self.running = False
        self.errors: deque[Exception] = deque()

    def put(self, deliver: Callable[[], None]) -> None:
        """Add a delivery, then raise the error of an earlier one."""
        if not self._wait_until(lambda: len(self.waiting) < MOST):
            raise TimeoutError(self._reason())
        with self.changed:
            self.waiting.append(deliver)
            if not self.running:
                self.running = True
                threading.Thread(target=self._work, name="interpretable-training", daemon=True).start()
        self._raise()

    def drain(self) -> None:
        """Wait until all deliveries are made, then raise an error of one."""
        if not self._wait_until(lambda: not self.waiting):
            raise TimeoutError(self._reason())
        self._raise()

    def _reason(self) -> str:
        return (
            f"expected the loggers to take what is sent within {self.patience:g} s, got no answer; pictures and "
            "tables that they miss are in the folder explanations, and their numbers may stop the training too."
        )

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition is met before the patience is exhausted; any completed delivery renews it."""
        with self.changed:
            while not condition() and not self.stopped:
                before = self.completed
                self.changed.wait(self.patience)
                self.stopped = self.completed == before
            return condition()

    def _raise(self) -> None:
        if self.errors:
            raise self.errors.popleft()

    def _work(self) -> None:
        while True:
            with self.changed:
                if not self.waiting:
                    self.running = False
                    return
                deliver = self.waiting[0]
            try:
                deliver()
            except Exception as error:
                self.errors.append(error)
            with self.changed:
                self.waiting.popleft()
                self.completed, self.stopped = self.completed + 1, False
                self.changed.notify_all()


SENDERS: weakref.WeakKeyDictionary[L.Trainer, BackgroundSender] = weakref.WeakKeyDictionary()
