"""Explanation steps in the progress bar of the Trainer: which callback explains, and how many images are done."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning as L


class StepProgress:
    """Description of the bar that Lightning shows, with the name of a callback while it explains."""

    def __init__(self, trainer: L.Trainer, label: str) -> None:
        self.label, self.images = label, 0
        self.owner: Any = trainer.progress_bar_callback
        self.bar: Any = None
        self.before = ""
        with suppress(Exception):  # bars of other packages may lack anything
            bar = getattr(self.owner, f"{_stage(trainer)}_progress_bar")
            self.before = bar.desc if hasattr(bar, "set_description_str") else bar.description
            self.bar = bar
        self.advance(0)

    def advance(self, images: int) -> None:
        """Add images that are explained."""
        self.images += images
        count = f" {self.images} images" if self.images else ""
        self.show(f"{self.before.rstrip(': ')}, {self.label}{count}")

    def show(self, text: str) -> None:
        """Show a description; a bar that takes none is left as it is."""
        bar = self.bar
        with suppress(Exception):
            if hasattr(bar, "set_description_str"):  # tqdm
                bar.set_description_str(text if text == self.before else f"{text}: ")
            elif bar is not None:  # rich
                bar.description = text
                self.owner.refresh()


def _stage(trainer: L.Trainer) -> str:
    if trainer.validating or trainer.sanity_checking:
        return "val"
    return "test" if trainer.testing else "train"


@contextmanager
def step_progress(trainer: L.Trainer, label: str) -> Iterator[StepProgress]:
    """Show the name of a callback in the bar inside of the block, and restore the description."""
    progress = StepProgress(trainer, label)
    try:
        yield progress
    finally:
        progress.show(progress.before)
