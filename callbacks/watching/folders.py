"""Where a run's files belong."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

TOP = 2000  # bytes of a page in which its run is named
WAITING = """<!doctype html>
<meta charset="utf-8">
<title>Run {run}</title>
<p>The report of run {run} is written when the run ends or is stopped. After a run that was killed, write it in Python,
in this folder:</p>
<pre>from interpretable_training.report.page import write_report
write_report("explanations", "{page}", run="{run}")</pre>
"""


def run_folder(trainer: L.Trainer) -> Path:
    """The folder in which Lightning puts the folder of this run's checkpoints; all processes have to ask.

    Loggers such as that of W&B share a folder among their runs: there each run has one of its own, below their name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    logger = trainer.logger
    if logger is None or isinstance(logger, (CSVLogger, TensorBoardLogger)) or logger.save_dir is None:
        return folder
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return folder / str(logger.name) / version


def claim_page(folder: Path, run: str) -> Path:
    """The page of a run: `report.html`, or `report-RUN.html` where that is the page of another run.

    A page is claimed by making it, so that runs that start at the same time get different ones; a run that goes on from
    a checkpoint gets its own again, which names the run near its top.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"report-{run}.html"
    for page in (own,) if own.exists() else (folder / "report.html", own):
        try:
            with page.open("x", encoding="utf-8") as file:
                file.write(WAITING.format(run=run, page=page.name))
        except FileExistsError:
            if not page.is_file() or run.encode() not in page.read_bytes()[:TOP]:
                continue
        except OSError:  # a full disk
            page.unlink(missing_ok=True)
            raise
        return page
    return own
