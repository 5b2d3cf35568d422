"""Compute the evidence and write its page: `python -m interpretable_training.recipes.evidence --part streams`.

What is done already is kept in the folder: a run that was interrupted goes on where it stopped.
"""

import sys
from pathlib import Path
from typing import Literal, get_args

from jsonargparse import auto_cli

from interpretable_training.recipes.evidence import believable, expected, faithfulness, streams

Part = Literal["streams", "faithfulness", "metrics", "expected"]
PARTS = {
    "streams": streams.write_streams,
    "faithfulness": faithfulness.write_faithfulness,
    "metrics": believable.write_believable,
    "expected": expected.write_expected,
}


def evidence(part: Part | None = None, output: str = "docs/evidence", work: str = "runs/evidence") -> None:
    """Compute one part of the evidence, or all; hours on two cores.

    Args:
        part: "streams": CA-Stream on frozen networks. "faithfulness": methods on photographs. "metrics": which metric
            can be believed. "expected": the readings of Expected Grad-CAM.
        output: Folder of tables and pictures.
        work: Folder of weights, features and what is done so far.
    """
    for name in get_args(Part) if part is None else [part]:
        folder = Path(work) / {"expected": "metrics"}.get(name, name)  # which share their networks
        folder.mkdir(parents=True, exist_ok=True)
        text = PARTS[name](folder, Path(output))
        sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    auto_cli(evidence, prog="python -m interpretable_training.recipes.evidence")
