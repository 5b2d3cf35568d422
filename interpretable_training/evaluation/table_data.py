"""Numbers per image of methods and metrics, and what follows from them: means, intervals, differences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interpretable_training.metrics.core.base import Fact, ImageMetric

from .bootstrap import BootstrapDraws, interval, p_value

# Maps that are equal on paper differ in their last bits, which may turn the order of two pixels: differences up to this
# share of a metric's largest value are no differences.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Cell:
    """Values of one metric for one method."""

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
class TableData:
    """Numbers of methods and metrics for each image.

    Attributes:
        images: index of the image of each row, (n,); an image with several labels has several rows.
        classes: class of each row, (n,).
        values: method -> metric -> numbers (n, columns), NaN where there is none.
        degenerate: method -> which maps are constant, (n,).
        metrics: name -> metric.
        facts: what was evaluated: the model, the methods' options, the target.
        curves: method -> metric -> kind of curve -> number of images, sums and sums of squares of each point, (3, J).
        reference: the method that the others are compared with.
        controls: the methods that ignore the model.
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
        """Return metric -> what its number means."""
        return {name: metric.passport() for name, metric in self.metrics.items()}

    def __len__(self) -> int:
        return len(self.images)

    def per_image(self, method: str, metric: str) -> Tensor:
        """Return the number of each row, (n,)."""
        if method not in self.values or metric not in self.metrics:
            raise KeyError(self._expected((method, metric)))
        return self.metrics[metric].aggregate(self.values[method][metric])

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """Return a cell, as in table["gradcam", "insertion"]."""
        if key not in self.cells:
            raise KeyError(self._expected(key))
        return self.cells[key]

    def _expected(self, key: object) -> str:
        return f"expected (method, metric) of {list(self.values)} and {list(self.metrics)}, got {key}."

    @property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Return (method, metric) -> mean, interval and difference."""
        if not self._cells:
            self._cells.update({(cell.method, cell.metric): cell for cell in self._compute()})
        return self._cells

    def _compute(self) -> Iterable[Cell]:
        blocks = [self._columns(method, metric) for metric in self.metrics for method in self.values]
        widths = [block.shape[1] // 3 for block in blocks for _ in range(3)]
        columns = torch.cat(blocks, 1)
        drawn = iter(BootstrapDraws(self.images, self.resamples, self.seed).means(columns).split(widths, 1))
        means = iter(columns.nanmean(0).split(widths))
        for metric in self.metrics:
            largest = max(float(self.per_image(method, metric).abs().nan_to_num().max()) for method in self.values)
            for method in self.values:
                triples = ([next(part) for _ in range(3)] for part in (drawn, means))
                yield self._cell(method, metric, ROUNDING * largest, *triples)

    def _columns(self, method: str, metric: str) -> Tensor:
        """Return numbers of the method; then those of the method and of the reference where both have one."""
        both = [self.values[name][metric].double() for name in (method, self.reference)]
        unknown = both[0].isnan() | both[1].isnan()
        return torch.cat([both[0], *(part.masked_fill(unknown, torch.nan) for part in both)], 1)

    def _cell(self, method: str, metric: str, rounding: float, drawn: list[Tensor], means: list[Tensor]) -> Cell:
        aggregate = self.metrics[metric].aggregate
        alone, ours, theirs = map(aggregate, drawn)
        mean, our, their = (float(aggregate(part)) for part in means)
        invalid = int(self.values[method][metric].isnan().any(1).sum())
        low, high = interval(alone)
        difference_low, difference_high = interval(ours - theirs)
        return Cell(
            method=method,
            metric=metric,
            mean=mean,
            low=low,
            high=high,
            n=len(self) - invalid,
            n_invalid=invalid,
            n_degenerate=int(self.degenerate[method].sum()),
            difference=0.0 if abs(our - their) <= rounding else our - their,
            difference_low=difference_low,
            difference_high=difference_high,
            p=math.nan if method == self.reference else p_value(ours - theirs, rounding),
        )
