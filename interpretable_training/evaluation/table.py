"""What an evaluation found: numbers per image, and what is told of them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpretable_training.files import write_whole
from interpretable_training.metrics.core.base import Fact, ImageMetric, same_passport

from . import table_formats
from .bootstrap import Draws, interval, p_value

# Maps that are equal on paper differ in their last bits, which may turn the order of two pixels: differences up to this
# share of a metric's largest value are no differences.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Cell:
    """One metric of one method."""

    method: str
    metric: str
    mean: float
    low: float
    high: float
    n: int
    n_invalid: int
    n_degenerate: int
    difference: float  # from the reference, on the images that have both
    difference_low: float
    difference_high: float
    p: float


@dataclass(repr=False)
class Table:
    """Methods x metrics, from numbers per image.

    Attributes:
        images: index of the image of each row, (n,); an image with several labels has several rows.
        classes: class of each row, (n,).
        values: method -> metric -> numbers (n, columns), NaN where there is none.
        degenerate: method -> which maps are constant, (n,).
        metrics: name -> metric.
        facts: what was evaluated: the model, the methods' options, the target.
        curves: method -> metric -> kind of curve -> number of images, sums and sums of squares of each point, (3, J).
        reference: the method that the others are compared with.
        controls: the methods that know nothing.
        complete: whether no batch is missing.
        resamples: how often the bootstrap draws.
        seed: of the bootstrap.
    """

    images: Tensor
    classes: Tensor
    values: dict[str, dict[str, Tensor]]
    degenerate: dict[str, Tensor]
    metrics: dict[str, ImageMetric]
    facts: dict[str, Fact]
    curves: dict[str, dict[str, dict[str, Tensor]]]
    reference: str
    controls: Sequence[str] = ()
    complete: bool = True
    resamples: int = 2000
    seed: int = 0
    _cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    @property
    def passports(self) -> dict[str, dict[str, Fact]]:
        """Metric -> what its number means."""
        return {name: metric.passport() for name, metric in self.metrics.items()}

    def __len__(self) -> int:
        return len(self.images)

    def per_image(self, method: str, metric: str) -> Tensor:
        """Return the number of each row, (n,)."""
        if method not in self.values or metric not in self.metrics:
            raise KeyError(self._expected((method, metric)))
        return self.metrics[metric].aggregate(self.values[method][metric])

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """table["gradcam", "insertion"]."""
        if key not in self.cells:
            raise KeyError(self._expected(key))
        return self.cells[key]

    def _expected(self, key: object) -> str:
        return f"expected (method, metric) of {list(self.values)} and {list(self.metrics)}, got {key}."

    @property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """(method, metric) -> what is told of it."""
        if not self._cells:
            self._cells.update({(cell.method, cell.metric): cell for cell in self._compute()})
        return self._cells

    def _compute(self) -> Iterable[Cell]:
        blocks = [self._columns(method, metric) for metric in self.metrics for method in self.values]
        widths = [block.shape[1] // 3 for block in blocks for _ in range(3)]
        columns = torch.cat(blocks, 1)
        drawn = iter(Draws(self.images, self.resamples, self.seed).means(columns).split(widths, 1))
        means = iter(columns.nanmean(0).split(widths))
        for metric in self.metrics:
            largest = max(float(self.per_image(method, metric).abs().nan_to_num().max()) for method in self.values)
            for method in self.values:
                triples = ([next(part) for _ in range(3)] for part in (drawn, means))
                yield self._cell(method, metric, ROUNDING * largest, *triples)

    def _columns(self, method: str, metric: str) -> Tensor:
        """Numbers of the method; then those of the method and of the reference where both have one."""
        both = [self.values[name][metric].double() for name in (method, self.reference)]
        unknown = both[0].isnan() | both[1].isnan()
        return torch.cat([both[0], *(part.masked_fill(unknown, torch.nan) for part in both)], 1)

    def _cell(self, method: str, metric: str, rounding: float, drawn: list[Tensor], means: list[Tensor]) -> Cell:
        aggregate = self.metrics[metric].aggregate
        own, ours, theirs = map(aggregate, drawn)
        mean, our, their = (float(aggregate(part)) for part in means)
        invalid = int(self.values[method][metric].isnan().any(1).sum())
        return Cell(
            method,
            metric,
            mean,
            *interval(own),
            len(self) - invalid,
            invalid,
            int(self.degenerate[method].sum()),
            0.0 if abs(our - their) <= rounding else our - their,
            *interval(ours - theirs),
            math.nan if method == self.reference else p_value(ours - theirs, rounding),
        )

    def to_text(self) -> str:
        """For a terminal."""
        return table_formats.to_text(self)

    def to_markdown(self) -> str:
        return table_formats.to_markdown(self)

    def to_latex(self) -> str:
        return table_formats.to_latex(self)

    def to_csv(self) -> str:
        """One line per method and metric."""
        return table_formats.to_csv(self)

    def to_wandb(self) -> Any:
        """A `wandb.Table` with one row per method and metric."""
        import wandb

        rows = table_formats.records(self)
        return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])

    def __repr__(self) -> str:
        return self.to_text()

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
            "values.csv": table_formats.values_to_csv(self),
            "passports.json": json.dumps(passports, indent=2) + "\n",
        }
        for name, content in files.items():
            write_whole(folder / name, content)
        return [folder / name for name in files]


def join(tables: Mapping[str, Table], reference: str | None = None) -> Table:
    """Tables of several models on the same images as one, whose methods are called `name/method`.

    Differences are those from `reference`, by default the first method of the first table.
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
        first.images,
        first.classes,
        values,
        renamed("degenerate"),
        first.metrics,
        {**renamed("facts"), "target": first.facts["target"]},
        renamed("curves"),
        reference or next(iter(values)),
        [f"{name}/{key}" for name, table in tables.items() for key in table.controls],
        all(table.complete for table in tables.values()),
        first.resamples,
        first.seed,
    )
