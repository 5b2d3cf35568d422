"""The journal and the page of a run, and the folder in which they lie."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from interpretable_training.files import OTHER_FOLDER
from interpretable_training.report.journal import Journal
from interpretable_training.report.page import write_report
from interpretable_training.report.value_readers import read_text

TOP = 2000  # bytes of a page in which its run is named
WAITING = """<!doctype html>
<meta charset="utf-8">
<title>Run {run}</title>
<p>The report of run {run} is written when the run ends or is stopped. After a run that was killed, write it in Python,
in this folder:</p>
<pre>from interpretable_training.report.page import write_report
write_report("{folder}", "{page}", run="{run}")</pre>
"""


class RunJournal:
    """Journal and page that a run writes to disk.

    Args:
        folder: the folder `explanations` of the run.
        beside: the folder of the page.
    """

    def __init__(self, folder: Path, beside: Path) -> None:
        self.journal, self.beside = Journal(folder), beside
        self.page: Path | None = None
        self.warned = False  # of a full disk

    @property
    def address(self) -> dict[str, str]:
        """Return the folder and the run, for a training that resumes from a checkpoint."""
        return {"folder": str(self.journal.folder.absolute()), "run": self.journal.run}

    def resume(self, address: dict[str, str], step: int) -> None:
        """Continue the journal of a checkpoint, which may lie in another folder."""
        self.journal.run = address["run"]
        folder, before = self.journal.folder.absolute(), Path(address["folder"])
        if before == folder:
            self.write("resume", step=step)
        else:
            near = os.path.relpath(before, folder) if before.anchor == folder.anchor else before
            self.write("continued", step=step, folder=str(near))

    def claim_page(self) -> None:
        """Choose the name of the page; after an error of the disk it is chosen when the page is written."""
        with suppress(OSError):
            self.page = claim_page(self.beside, self.journal.run, self.journal.folder)

    def write(self, kind: str, **facts: Any) -> None:
        """Append a line; a full disk is warned of once and costs no more than the line."""
        try:
            self.journal.write(kind, **facts)
        except OSError as error:
            if not self.warned:
                rank_zero_warn(f"could not write to {self.journal.folder}, the training goes on: {error}")
            self.warned = True

    def write_page(self) -> Path | None:
        """Write the page from the journal, also of a training that was stopped; None where that fails."""
        try:
            self.page = self.page or claim_page(self.beside, self.journal.run, self.journal.folder)
            path = write_report(self.journal.folder, self.page, run=self.journal.run)
            rank_zero_info(f"Report of the watching callbacks: {path}")
            return path
        except Exception as error:  # an error of the page does not end a training
            rank_zero_warn(f"could not write the report of {self.journal.folder}: {type(error).__name__}: {error}")
            return None


def read_address(value: Any) -> dict[str, str]:
    """Return folder and run of the journal that a checkpoint names."""
    address = {name: read_text(value[name]) for name in ("folder", "run")}
    if not address["folder"] or "\0" in address["folder"] or not re.fullmatch(r"[\w-]{1,64}", address["run"]):
        raise ValueError(f"expected a folder and the name of a run, got {address}.")
    return address


def run_folder(trainer: L.Trainer) -> Path:
    """Return the folder in which Lightning puts the folder of this run's checkpoints; call it in all processes.

    Loggers such as that of W&B share a folder among their runs: each run gets a separate folder, below their name.
    Without a logger it is the folder `explanations` below the trainer's.
    """
    other, folder = OTHER_FOLDER.get(), Path(trainer.log_dir or trainer.default_root_dir)
    if other is not None:
        return other
    logger = trainer.logger
    if logger is None:
        return folder / "explanations"
    if getattr(logger, "log_dir", None) is not None or logger.save_dir is None:
        return folder
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return folder / str(logger.name) / version


def claim_page(folder: Path, run: str, journal: Path) -> Path:
    """Return the page of a run: `report.html`, or `report-RUN.html` where that is the page of another run.

    A page is claimed by making it, so that runs that start at the same time get different ones; a run that goes on from
    a checkpoint gets its own again, which names the run near its top.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = folder / f"report-{run}.html"
    for page in (named,) if named.exists() else (folder / "report.html", named):
        try:
            with page.open("x", encoding="utf-8") as file:
                file.write(WAITING.format(run=run, page=page.name, folder=os.path.relpath(journal, folder)))
        except FileExistsError:
            if not page.is_file() or run.encode() not in page.read_bytes()[:TOP]:
                continue
        except OSError:  # a full disk
            page.unlink(missing_ok=True)
            raise
        return page
    return named
