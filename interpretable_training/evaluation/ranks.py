"""The processes that share an evaluation: they begin together, and one that fails or is interrupted ends all."""

import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from ._compat import default_store

PATIENCE = 300.0  # seconds that a process waits for others to call `evaluate`
POLL = 0.05


class Peers:
    """Exchange results between the processes of a `torch.distributed` group; use it in `with`, around all of the work.

    Messages go through the store of the group, which, other than a collective, blocks no process. Whoever fails says it
    there; the others ask between two batches. In the end all exchange what they have, those that failed too, so that
    no process waits for one that is gone.

    Args:
        share: whether processes share the work; those of a sharded model run it together, so that each does all of it.
    """

    def __init__(self, share: bool = True) -> None:
        shared = share and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        self.store = default_store() if shared else None
        self.shared = False  # whether the exchange at the end was made
        self.key = ""
        self.claimed: set[int] = set()
        self.counted = 0

    def __enter__(self) -> "Peers":
        if self.store is not None:
            # Each process counts in the store the evaluations that it has shared, so that keys are never used twice.
            self.key = f"interpretable_training/evaluate/{self.store.add(f'evaluations of {self.rank}', 0)}"
            self._meet()
        return self

    def _meet(self) -> None:
        """Wait until each process is here; leave again after `PATIENCE` or Ctrl-C."""
        assert self.store is not None
        counter, end = f"{self.key}/came", time.monotonic() + PATIENCE
        arrived = self.store.add(counter, 1)
        try:
            while (arrived := self.store.add(counter, 0)) < self.world and time.monotonic() < end:
                time.sleep(POLL)
        except KeyboardInterrupt:
            self.store.add(counter, -1)
            raise
        # In the moment in which this one leaves the last one may come; then it stays.
        if arrived < self.world and self.store.add(counter, -1) < self.world - 1:
            raise RuntimeError(
                f"expected each of the {self.world} processes to call evaluate, got {arrived} within {PATIENCE:.0f} s; "
                "call it in all of them, not below `if rank == 0`, or look at why the others did not get there."
            )
        if arrived < self.world:
            self.store.add(counter, 1)

    def claim(self, number: int) -> bool:
        """Whether a batch is for this process to do: the first one that asks gets it, so that none waits for work."""
        if number in self.claimed:
            return False
        self.claimed.add(number)
        return self.store is None or self.store.add(f"{self.key}/batch {number}", 1) == 1

    def count(self, images: int) -> int:
        """Add images that are done; return how many all processes have done."""
        self.counted += images
        return self.counted if self.store is None else self.store.add(f"{self.key}/images", images)

    def stopped(self) -> bool:
        """Whether one of the processes has failed or was interrupted."""
        return self.store is not None and self.store.check([f"{self.key}/stopped"])

    def stop(self) -> None:
        """Let the others end after the batch at which they are."""
        if self.store is not None:
            self.store.set(f"{self.key}/stopped", str(self.rank))

    def share(self, part: Any, failure: str = "") -> list[Any]:
        """Return the parts of all processes; raise an error with the reasons if some failed."""
        if self.store is None:
            return [part]
        self.shared = True
        self.store.add(f"evaluations of {self.rank}", 1)
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, (part, failure))
        failures = [f"in process {rank} {why}" for rank, (_, why) in enumerate(gathered) if why]
        if failures and not failure:
            raise RuntimeError(f"expected evaluate to end well in each process, got {'; '.join(failures)}")
        return [part for part, _ in gathered]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.key and not self.shared:
            self.stop()
            self.share(None, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
