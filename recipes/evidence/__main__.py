"""Compute the evidence and fill its page: `python -m interpretable_training.recipes.evidence --part streams`.

What is done already is kept in the folder of the work: a run that was interrupted goes on where it stopped. Several
processes share the photographs: `torchrun --nproc-per-node 2 -m interpretable_training.recipes.evidence --part
faithfulness`.
"""

from pathlib import Path
from typing import Literal, get_args

import torch.distributed as dist
from jsonargparse import auto_cli

from interpretable_training.files import csv_text, write_whole
from interpretable_training.recipes.evidence.believable import metric_tables
from interpretable_training.recipes.evidence.convergence import convergence_tables, sanity_tables
from interpretable_training.recipes.evidence.expected import expected_tables
from interpretable_training.recipes.evidence.faithfulness import faithfulness_tables
from interpretable_training.recipes.evidence.page import fill_page, machine, markdown
from interpretable_training.recipes.evidence.streams import stream_tables
from interpretable_training.recipes.evidence.training_table import training_tables

Part = Literal["streams", "faithfulness", "metrics", "expected", "sanity", "convergence", "training"]
PARTS = {
    "streams": stream_tables,
    "faithfulness": faithfulness_tables,
    "metrics": metric_tables,
    "expected": expected_tables,
    "sanity": sanity_tables,
    "convergence": convergence_tables,
    "training": training_tables,
}


def evidence(part: Part | None = None, output: str = "docs/evidence", work: str = "runs/evidence") -> None:
    """Compute one part of the evidence, or all; hours on two cores.

    Args:
        part: "streams": CA-Stream on frozen networks. "faithfulness": methods on photographs. "metrics": which metric
            can be believed. "expected": the readings of Expected Grad-CAM. "sanity": random layers of the real network.
            "convergence": how many masks or steps a map needs. "training": ways to train.
        output: Folder of tables and pictures; the page beside it, such as docs/evidence.md, gets the tables.
        work: Folder of weights, features and what is done so far.
    """
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    for name in get_args(Part) if part is None else [part]:
        folder = Path(work) / {"expected": "metrics"}.get(name, name)  # which share their networks
        for path in (folder, Path(output)):
            path.mkdir(parents=True, exist_ok=True)
        page = Path(output).with_suffix(".md")
        tables = PARTS[name](folder, Path(output))
        for table, rows in tables.items():
            write_whole(Path(output) / f"{table}.csv", csv_text(rows))
            fill_page(page, table, markdown(rows))
        if tables:
            fill_page(page, f"machine of {name}", machine())


if __name__ == "__main__":
    auto_cli(evidence, prog="python -m interpretable_training.recipes.evidence")
