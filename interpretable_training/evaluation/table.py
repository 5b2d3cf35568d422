"""The table that `evaluate` returns, and several of them as one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interpretable_training.files import write_whole
from interpretable_training.metrics.core.base import same_passport

from . import table_formats
from .table_data import TableData


@dataclass(repr=False)
class Table(TableData):
    """Methods x metrics with intervals, differences from a reference, and passports.

    >>> from interpretable_training.attribution import GradCAM
    >>> from interpretable_training.metrics import AverageDrop, evaluate
    >>> table = evaluate(network, GradCAM(), AverageDrop(), (images, target), progress=False)
    >>> table["gradcam", "average_drop"].n
    4
    """

    def to_text(self) -> str:
        """Return the table for a terminal."""
        return table_formats.text_of(self)

    def to_markdown(self) -> str:
        return table_formats.markdown_of(self)

    def to_latex(self) -> str:
        return table_formats.latex_of(self)

    def to_csv(self) -> str:
        """Return one line per method and metric."""
        return table_formats.csv_of(self)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with one row per method and metric."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("expected the package pandas for to_pandas, got none; pip install pandas.") from error
        return pandas.DataFrame(table_formats.records(self))

    def to_html(self) -> str:
        """Return means and differences as HTML tables."""
        return table_formats.html_of(self)

    def to_wandb(self) -> Any:
        """Return a `wandb.Table` with one row per method and metric."""
        import wandb

        rows = table_formats.records(self)
        return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:  # notebooks show this
        return self.to_html()

    def save(self, folder: str | Path) -> list[Path]:
        """Write table.txt, .md, .tex, .csv, values.csv (one line per image and method) and passports.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        passports = {"evaluation": self.facts, "metrics": self.passports}
        files = {
            "table.txt": self.to_text(),
            "table.md": self.to_markdown(),
            "table.tex": self.to_latex(),
            "table.csv": self.to_csv(),
            "values.csv": table_formats.csv_of_images(self),
            "passports.json": json.dumps(passports, indent=2) + "\n",
        }
        for name, content in files.items():
            write_whole(folder / name, content)
        return [folder / name for name in files]


def join(tables: Mapping[str, Table], reference: str | None = None) -> Table:
    """Return tables of several models on the same images as one, with methods called `name/method`.

    Differences are those from `reference`, by default the first method of the first table.

    >>> from interpretable_training.attribution import GradCAM
    >>> from interpretable_training.metrics import AverageDrop, evaluate
    >>> table = evaluate(network, GradCAM(), AverageDrop(), (images, target), progress=False, controls=False)
    >>> list(join({"before": table, "after": table}).values)
    ['before/gradcam', 'after/gradcam']
    """
    if not isinstance(tables, Mapping) or not all(isinstance(table, Table) for table in tables.values()):
        raise TypeError(f"expected tables as a dict name -> Table, got {tables!r:.100}.")
    if not tables:
        raise ValueError("expected at least one table to join, got none.")
    first = next(iter(tables.values()))
    for name, table in tables.items():
        if list(table.metrics) != list(first.metrics):
            raise ValueError(f"expected the metrics {list(first.metrics)} in each table, got {list(table.metrics)}.")
        for metric, passport in table.passports.items():
            same_passport(first.passports[metric], passport)
        same = torch.equal(table.images, first.images) and torch.equal(table.classes, first.classes)
        if not same or table.facts["target"] != first.facts["target"]:
            raise ValueError(
                f"expected the same images and classes in each table, got others in {name!r}; evaluate with the same "
                "data, max_images, seed and target."
            )

    def renamed(part: str) -> dict[str, Any]:
        return {f"{name}/{key}": value for name, table in tables.items() for key, value in getattr(table, part).items()}

    values = renamed("values")
    if reference is not None and reference not in values:
        raise ValueError(f"expected a reference among {list(values)}, got {reference!r}.")
    return Table(
        images=first.images,
        classes=first.classes,
        values=values,
        degenerate=renamed("degenerate"),
        metrics=first.metrics,
        facts={**renamed("facts"), "target": first.facts["target"]},
        curves=renamed("curves"),
        reference=reference or next(iter(values)),
        controls=[f"{name}/{key}" for name, table in tables.items() for key in table.controls],
        complete=all(table.complete for table in tables.values()),
        resamples=first.resamples,
        seed=first.seed,
    )
