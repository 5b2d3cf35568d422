"""The journal of a run, found from the folder of the run, a checkpoint or the folder of a sweep's run."""

from dataclasses import replace
from pathlib import Path

import torch

from .journal import FILE, JournalRun, read_journal

FOLDER = "explanations"
TABLE = "values.csv"  # of `evaluate`: one line per image and method


def find_run(path: str | Path) -> JournalRun:
    """Return the run that a path leads to; of a checkpoint, its lines up to the step of the checkpoint.

    Args:
        path: The folder `explanations`, a folder with one of these in it, or a checkpoint in the folder of a run.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"expected the folder of a run or a checkpoint, got {str(path)!r}, which does not exist.")
    if path.is_dir():
        return JournalRun(path, [], []) if _is_table(path) else read_journal(_below(path))
    step = _step_of(path)
    run = read_journal(_above(path))
    lines = [line for line in run.lines if line.get("stage", "fit") == "fit" and (line.get("step") or 0) <= step]
    return replace(run, lines=lines)


def _is_table(folder: Path) -> bool:
    """Whether a folder has a table of `evaluate` and no journal."""
    return (folder / TABLE).is_file() and not any(folder.rglob(FILE))


def _below(folder: Path) -> Path:
    """Return the only folder with a journal in a folder."""
    near = [place for place in (folder, folder / FOLDER) if (place / FILE).is_file()]
    journals = near or sorted(file.parent for file in folder.rglob(FILE))
    if len(journals) != 1:
        listed = [str(place.parent) for place in journals[:5]] or "none"
        raise ValueError(
            f"expected the folder of one run, with {FOLDER}/{FILE}, got {str(folder)!r}; journals in it: {listed}. "
            "Runs with ExplanationLogger or another watching callback have one."
        )
    return journals[0]


def _above(path: Path) -> Path:
    """Return the folder with the journal of the run to which a checkpoint belongs."""
    for folder in path.resolve().parents[:3]:
        if (folder / FOLDER / FILE).is_file():
            return folder / FOLDER
    raise ValueError(
        f"expected a checkpoint in the folder of a run with {FOLDER}/{FILE}, got {str(path)!r}; pass the folder."
    )


def _step_of(path: Path) -> int:
    """Return the global step of a checkpoint."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # whatever another kind of file makes of torch.load
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"expected a folder of a run or a checkpoint of Lightning, got {str(path)!r}: {reason}"
        ) from error
